//! Asking a guest to stop, and waiting until it has.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use blixard_core::types::InstanceId;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open, set_child_subreaper, waitpgid,
};

use super::account::{self, Ids};
use super::files::{self, Installed, RunDir};
use super::{GateError, files_of, runner_file};

/// How long a guest that was asked to stop is given before it is asked again.
///
/// A guest that is still booting doesn't hear the first time; systemd's `TimeoutStopSec=` bounds the whole.
const ASK_AGAIN: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// The main process of the unit that this one is to stop, as systemd says (`systemd.exec(5)`).
pub fn main_process() -> Option<Pid> {
    std::env::var("MAINPID").ok().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw)
}

/// The first of these processes to have started: of a unit that begins with its gate, the main one.
pub fn oldest(processes: &[Pid]) -> Option<Pid> {
    let started = |pid: Pid| Some((started(pid)?, pid.as_raw_nonzero(), pid));
    processes.iter().filter_map(|pid| started(*pid)).min_by_key(|(at, number, _)| (*at, *number)).map(|(.., pid)| pid)
}

/// When a process has started, in ticks since the host has (`proc_pid_stat(5)`, field 22), if it still is.
fn started(pid: Pid) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // Behind its name, which may have anything in it, comes field 3.
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Ask the guest to stop and wait until the unit's main process is gone.
///
/// Returns at once where nobody can be asked: systemd then goes on without.
pub fn stop_vm(run_dir: &RunDir, id: &InstanceId, main: Option<Pid>) -> Result<(), GateError> {
    let installed = files::read::<Installed>(&run_dir.vm(id)).map_err(files_of(&id))?;
    let (Some(main), Some(installed)) = (main, installed) else { return Ok(()) };
    let program = runner_file(&installed, "microvm-shutdown");
    if !program.exists() {
        return Ok(());
    }
    let pid = main.as_raw_nonzero().get();
    let wait_error = |source| GateError::Wait { pid, source };
    let main = match pidfd_open(main, PidfdFlags::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => return Err(wait_error(error.into())),
    };
    let ids = Ids::of(&installed.account, Some(account::KVM));
    ids.and_then(|ids| ids.assume()).map_err(|source| GateError::Account { name: id.to_string(), source })?;
    // What microvm-shutdown leaves behind becomes this process's to wait for.
    set_child_subreaper(Some(rustix::process::getpid())).map_err(|error| wait_error(error.into()))?;
    let mut command = Command::new(&program);
    command
        .current_dir(&installed.work_dir)
        .env("MAINPID", pid.to_string())
        .env_remove("NOTIFY_SOCKET")
        .process_group(0);
    let ask = || command.spawn().map_err(|source| GateError::Execute { program: program.clone(), source });
    wait_for_main(&main, ask, wait_error)
}

/// Ask, and ask again, until the main process is gone or the first asking has failed.
///
/// A runner's shutdown may wait for the guest itself, and a guest that is still booting heard nothing: so one that
/// takes too long is ended, with all that it has started, before the guest is asked anew.
fn wait_for_main(
    main: &OwnedFd,
    mut ask: impl FnMut() -> Result<Child, GateError>,
    failed: impl Fn(io::Error) -> GateError,
) -> Result<(), GateError> {
    let mut first = true;
    loop {
        let mut child = ask()?;
        let pid = Pid::from_child(&child);
        let asking = pidfd_open(pid, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        let [gone, asked] = wait(&[main, &asking]).map_err(&failed)?;
        if gone || !asked {
            // The group is gone when its last process is.
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let status = child.wait().map_err(&failed)?;
        if gone || !asked {
            // A process that dies after this one would keep the unit's control group alive, and systemd waiting.
            while waitpgid(pid, WaitOptions::empty()).is_ok() {}
        }
        if gone {
            return Ok(());
        }
        if asked && first && !status.success() {
            eprintln!("blixard gate: microvm-shutdown failed ({status}): the VM is stopped without asking its guest");
            return Ok(());
        }
        if asked && wait(&[main]).map_err(&failed)? == [true] {
            return Ok(());
        }
        first = false;
    }
}

/// Which of these processes have ended, once one has or it is time to ask again.
fn wait<const N: usize>(processes: &[&OwnedFd; N]) -> io::Result<[bool; N]> {
    let mut fds = processes.map(|fd| PollFd::new(fd, PollFlags::IN));
    loop {
        match poll(&mut fds, Some(&ASK_AGAIN)) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) => return Ok(fds.map(|fd| fd.revents().contains(PollFlags::IN))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A process that only a signal ends.
    fn endless() -> (Child, OwnedFd) {
        let child = Command::new("tail").args(["-f", "/dev/null"]).spawn().unwrap();
        let fd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        (child, fd)
    }

    fn ask(program: &str, argument: &str) -> Result<Child, GateError> {
        let child = Command::new(program).arg(argument).process_group(0).spawn();
        child.map_err(|source| GateError::Execute { program: program.into(), source })
    }

    fn failed(source: io::Error) -> GateError {
        GateError::Wait { pid: 0, source }
    }

    #[test]
    fn the_main_process_is_the_one_that_was_first() {
        let own = rustix::process::getpid();
        let (mut child, _) = endless();
        let pid = Pid::from_child(&child);
        assert_eq!(oldest(&[pid, own]), Some(own));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(oldest(&[pid]), None, "it is gone");
        assert_eq!(oldest(&[]), None);
    }

    #[test]
    fn a_stop_returns_when_the_main_process_is_gone() {
        let (mut child, main) = endless();
        let pid = child.id().to_string();
        wait_for_main(&main, || ask("kill", &pid), failed).unwrap();
        assert!(child.try_wait().unwrap().is_some());
    }

    #[test]
    fn a_stop_that_cannot_be_asked_for_leaves_the_rest_to_systemd() {
        let (mut child, main) = endless();
        wait_for_main(&main, || ask("false", ""), failed).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
