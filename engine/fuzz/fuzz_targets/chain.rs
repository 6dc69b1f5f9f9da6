//! A chain of metadata pages of one blob.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::format::fuzzing::fuzz_chain(data);
});
