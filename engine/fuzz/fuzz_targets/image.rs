//! A whole image: load, list, read, check.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::fuzz_image(data);
});
