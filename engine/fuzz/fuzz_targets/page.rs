//! A metadata page: header, descriptors, CRC.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    coppice_engine::format::fuzzing::fuzz_page(data);
});
