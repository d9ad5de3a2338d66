//! A member as a process of its own: started, looked at from outside, and ended.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::probe::{self, Memory};
use crate::slow::SlowSync;

/// A program that is started and ended as often as is wanted; killed when it is dropped.
pub struct Process {
    program: OsString,
    arguments: Vec<OsString>,
    log: PathBuf,
    slow: Option<Duration>,
    child: Option<Child>,
}

impl Process {
    /// Starts a program whose output goes to `log`; with `slow`, each of its fsyncs takes so much longer.
    pub fn start(command: &Command, log: PathBuf, slow: Option<Duration>) -> Self {
        let arguments = command.get_args().map(OsString::from).collect();
        let mut process = Self { program: command.get_program().to_owned(), arguments, log, slow, child: None };
        process.start_again();
        process
    }

    /// Starts it as it was started first.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "it has to be ended before");
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        let supervisor = self.slow.map(|delay| SlowSync::wrap(&mut command, delay));
        let log = File::options().create(true).append(true).open(&self.log).expect("the bench's folder can be written");
        command.stdout(log.try_clone().expect("a file can be shared")).stderr(log);
        if supervisor.is_none() {
            command.stdin(Stdio::null());
        }
        let child = command.spawn();
        self.child = Some(child.unwrap_or_else(|error| panic!("cannot start {}: {error}", self.program.display())));
        drop(command);
        if let Some(supervisor) = supervisor {
            supervisor.attend();
        }
    }

    /// Has it end by a signal, and waits until it has.
    pub fn end(&mut self, signal: Signal) {
        let mut child = self.child.take().expect("it runs");
        kill_process(Pid::from_child(&child), signal).expect("a child can be signalled");
        child.wait().expect("a child can be waited for");
    }

    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Processor time that it has taken so far.
    pub fn cpu(&self) -> Duration {
        probe::cpu_of(self.id())
    }

    pub fn memory(&self) -> Memory {
        probe::memory_of(self.id())
    }

    /// Its peak is that of what follows.
    pub fn forget_peak(&self) {
        probe::forget_peak_of(self.id());
    }

    fn id(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
