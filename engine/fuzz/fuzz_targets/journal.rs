//! The journal of the system blob, replayed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::format::fuzzing::fuzz_journal(data);
});
