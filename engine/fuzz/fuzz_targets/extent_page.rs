//! An extent page.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::format::fuzzing::fuzz_extent_page(data);
});
