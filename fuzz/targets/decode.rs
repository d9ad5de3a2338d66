#![no_main]
#[path = "../../agent/core/tests/fuzz/cases/bytes.rs"]
mod bytes;
#[path = "../../agent/core/tests/fuzz/cases/decode.rs"]
mod decode;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    decode::entries(bytes);
    decode::manifest(bytes);
});
