//! Whatever comes from another machine, or from a disk, stops nothing and misleads nobody.
//!
//! `BLIXARD_CASES` is how many cases of each kind are tried; `BLIXARD_CASE` is one to look at again. The same cases, found
//! by a fuzzer instead of drawn, are tried by `fuzz/`.

mod cases;

use std::panic::AssertUnwindSafe;

use cases::driver::Counts;

/// Cases of each kind by default.
const CASES: u64 = 3_000;
/// Most bytes of a case.
const MOST_BYTES: u64 = 1_000;

#[expect(clippy::disallowed_methods, reason = "how long a test takes is for whoever runs it to say")]
fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("it is a number"))
}

/// The bytes of a case; by a small generator of our own, so that no update of a crate changes what a number means.
fn drawn(case: u64) -> Vec<u8> {
    let mut state = case ^ 0x9e37_79b9_7f4a_7c15;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    draw();
    let length = draw() % MOST_BYTES;
    (0..length).map(|_| draw().to_le_bytes()[1]).collect()
}

#[expect(clippy::disallowed_macros, reason = "a case that failed is of no use where nobody sees it")]
fn try_all(mut run: impl FnMut(&[u8])) {
    let only = number_in("BLIXARD_CASE").map(|case| case..case + 1);
    for case in only.unwrap_or(0..number_in("BLIXARD_CASES").unwrap_or(CASES)) {
        let tried = std::panic::catch_unwind(AssertUnwindSafe(|| run(&drawn(case))));
        tried.unwrap_or_else(|cause| {
            eprintln!("BLIXARD_CASE={case} tries it again");
            std::panic::resume_unwind(cause)
        });
    }
}

#[test]
fn no_message_stops_or_misleads_a_server() {
    let mut all = Counts::default();
    let mut tried = 0;
    try_all(|bytes| {
        let Counts { taken, refused, terms_led, committed, installed, lost } = cases::driver::run(bytes);
        all.taken += taken;
        all.refused += refused;
        all.terms_led += terms_led;
        all.committed += committed;
        all.installed += installed;
        all.lost += lost;
        tried += 1;
    });
    let each = [(all.taken, 5), (all.refused, 5), (all.committed, 5)];
    let enough = each.iter().all(|(count, least)| count / tried >= *least);
    let seldom = all.terms_led * 10 > tried && all.installed * 20 > tried && all.lost * 5 > tried;
    assert!(tried == 1 || enough && seldom, "too little happened in {tried} cases: {all:?}");
}

#[test]
fn no_entry_harms_the_state() {
    try_all(cases::decode::entries);
}

#[test]
fn no_manifest_stops_its_reader() {
    try_all(cases::decode::manifest);
}
