//! A server's side of the transmission, as the client takes it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_nbd::client::fuzzing::fuzz_answers(data);
});
