//! Agents in processes of their own: what a signal or a full disk does to one can't be had in the process of the test.

#[path = "../support/address.rs"]
mod address;
mod agreement;
mod channel;
mod full;
mod kills;
mod member;
mod process;
#[path = "../support/random.rs"]
mod random;
mod vm;
mod wrapper;
mod writer;

use std::process::ExitCode;

use member::Member;
use process::Process;

/// What this program starts itself with to be a server.
const MEMBER_ARGUMENTS: [&str; 3] = ["--exact", "the_server_that_other_tests_start", "--nocapture"];

fn start(member: &mut Member) {
    member.process = Some(Process::start(member.command(), &member.log()));
}

/// No claim of its own: what the other tests start.
#[test]
fn the_server_that_other_tests_start() {
    let Some(ended) = member::be_member() else { return };
    let status = (0..=u8::MAX).find(|status| ExitCode::from(*status) == ended);
    std::process::exit(status.map_or(-1, i32::from));
}
