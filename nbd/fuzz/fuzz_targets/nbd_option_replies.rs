//! A server's side of the negotiation.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_nbd::proto::fuzzing::fuzz_option_replies(data);
});
