//! A member as a process of its own: started, looked at from outside, and stopped.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::probe;
use crate::slow::SlowSync;

/// Killed when it is dropped.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program whose output goes to `log`; with `slow`, each of its fsyncs takes so much longer.
    pub fn start(mut command: Command, log: &Path, slow: Option<Duration>) -> Self {
        let name = format!("{} ({})", command.get_program().display(), log.display());
        let supervisor = slow.map(|delay| SlowSync::wrap(&mut command, delay));
        let out = File::create(log).expect("the bench's folder can be written");
        command.stdout(out.try_clone().expect("a file can be shared")).stderr(out);
        if supervisor.is_none() {
            command.stdin(Stdio::null());
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        drop(command);
        if let Some(supervisor) = supervisor {
            supervisor.attend();
        }
        Self { child }
    }

    /// Processor time that it has taken so far.
    pub fn cpu(&self) -> Duration {
        probe::cpu_of(self.child.id())
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).expect("a child can be signalled");
        self.child.wait().expect("a child can be waited for");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
