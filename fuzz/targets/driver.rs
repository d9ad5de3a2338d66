#![no_main]
#[path = "../../agent/core/tests/fuzz/cases/bytes.rs"]
mod bytes;
#[path = "../../agent/core/tests/fuzz/cases/disk.rs"]
mod disk;
#[path = "../../agent/core/tests/fuzz/cases/driver.rs"]
mod driver;
#[path = "../../agent/core/tests/fuzz/cases/facts.rs"]
mod facts;
#[path = "../../agent/core/tests/fuzz/cases/lies.rs"]
mod lies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    driver::run(bytes);
});
