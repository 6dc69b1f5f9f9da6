//! A client's side of the transmission.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_nbd::proto::fuzzing::fuzz_requests(data);
});
