//! The program as a person meets it: what it prints, where, and with which exit status.

#[path = "../support/mod.rs"]
mod support;

mod ask;
mod check;
mod cluster;
mod events;
mod going_down;
mod json;
mod vm;

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn blixard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    command.stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

/// Exit status, standard output and standard error.
fn run(arguments: &[&str]) -> (i32, String, String) {
    told(&blixard().args(arguments).output().expect("the program can be started"))
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it prints text");
    (output.status.code().expect("no signal ends it"), text(&output.stdout), text(&output.stderr))
}

/// The one line of an error with this exit status; nothing else is printed.
fn refusal(arguments: &[&str], status: i32) -> String {
    let (code, out, err) = run(arguments);
    assert_eq!((code, &*out), (status, ""), "{arguments:?}: {err}");
    assert!(err.starts_with("error: "), "{arguments:?}: {err}");
    err
}

fn write(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}
