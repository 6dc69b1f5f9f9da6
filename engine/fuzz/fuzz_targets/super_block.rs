//! A super block, page 0 of a store.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::format::fuzzing::fuzz_super(data);
});
