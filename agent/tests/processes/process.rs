//! A program as a process of its own: started, and ended one way or the other.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};

/// Killed when it is dropped, and gone then.
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a program whose output is added to `log`.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let name = format!("{} ({})", command.get_program().display(), log.display());
        let out = File::options().create(true).append(true).open(log).expect("the log's folder can be written");
        command.stdout(out.try_clone().expect("a file can be shared")).stderr(out);
        let child = command.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}"));
        Self { child }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Asks it to end, and waits until it has.
    pub fn stop(mut self) -> ExitStatus {
        kill_process(self.pid(), Signal::TERM).expect("a child can be signalled");
        self.child.wait().expect("a child can be waited for")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
