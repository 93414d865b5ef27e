//! libFuzzer's way into `betree_fuzz::targets::rows`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| betree_fuzz::targets::rows(bytes));
