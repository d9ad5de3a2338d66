//! The fence of a host: a process of its own that stops every automatic instance when the node's lease is over, with nobody's
//! help: not the agent's, not the network's, not that of PID 1.
//!
//! ```text
//!   agent ── Arm, Renewed, Allow, Stopped ──▶ fence.sock ◀── Start ── gate, in each instance's unit
//!                                                 │
//!   CLOCK_BOOTTIME ──────────────────────────▶  Fence  ──▶ cgroup.kill of blixard-fenced.slice
//!                                                 └──────▶ signs of life: to the watchdog device, and to PID 1
//! ```
//!
//! One thread that nothing can block: it waits in one `poll`, reads only what is there, and what can't be written at once
//! isn't. Its memory is locked, and it opens no file of any disk once it has begun.

mod priority;
mod process;
mod slice;
mod socket;
mod systemd;
mod watchdog;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use blixard_core::fence::{Refusal, Reply, Request, Unable};
use blixard_core::types::{BootTime, InstanceId};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::Pid;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::boot_time::now;
use process::Process;
use slice::Slice;
pub use slice::{control_groups, is_empty};
pub use socket::{AskError, ask};
use socket::{Client, Heard, Listener, MAX_CLIENTS};
use systemd::Systemd;
use watchdog::{Device, NoWatchdog, Watchdog};

/// What of this host a fence works with.
#[derive(Clone, Debug)]
pub struct Settings {
    pub socket: PathBuf,
    /// Where control groups are; elsewhere only in tests.
    pub control_groups: PathBuf,
    /// What resets the host if this process hangs; without one, nothing is stopped if PID 1 hangs as well.
    pub watchdog: Option<PathBuf>,
    /// What this host runs on, if that may pause it.
    pub hypervisor: Option<String>,
}

/// Why a fence ends without having been told to.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    #[error("cannot listen on {}: does the directory exist, and may this process write there?", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("cannot wait for requests")]
    Wait { source: io::Error },
}

/// Where the fence of a host with this run directory is asked.
pub fn socket_in(run_dir: &Path) -> PathBuf {
    run_dir.join("fence.sock")
}

/// What runs in the unit of an instance that a fence has let start.
pub fn processes_of(instance: &InstanceId) -> Vec<Pid> {
    Slice::of_this_host().processes(instance)
}

/// Be this host's fence until it is told to end, and nothing runs any more.
///
/// # Errors
/// What it can't go on without. The one that is started then kills everything first.
pub fn run(settings: Settings) -> Result<(), FenceError> {
    let Settings { socket, control_groups, watchdog, hypervisor } = settings;
    let mut systemd = Systemd::of_this_unit();
    if let Err(error) = priority::raise() {
        systemd.complain(format!("runs without real-time priority: {error}"));
    }
    let slice = Slice::below(control_groups);
    let unable = slice.unusable().or_else(|| hypervisor.map(|hypervisor| Unable::Virtual { hypervisor }));
    let watchdog: Box<dyn Watchdog> = match watchdog {
        Some(path) => Box::new(Device::at(path)),
        None => Box::new(NoWatchdog),
    };
    let listener = Listener::bind(&socket).map_err(|source| FenceError::Listen { path: socket, source })?;
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        systemd.complain(format!("runs with memory that isn't locked: {error}"));
    }
    serve(Process::new(slice, watchdog, systemd, unable), &listener).map_err(|source| FenceError::Wait { source })
}

/// Answer and act in turn, until it is told to end.
fn serve(mut process: Process, listener: &Listener) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let (mut clients, mut told_to_end) = (Vec::<Client>::new(), Vec::new());
    while let Some(wake) = process.turn(now()) {
        let wake = clients.iter().map(|client| client.until).fold(wake, BootTime::min);
        wait(&timer, wake, listener, &clients)?;
        listener.accept(&mut clients, now());
        for client in std::mem::take(&mut clients) {
            match client.hear() {
                Heard::Request(request) => {
                    let reply = process.answer(now(), &request, client.pid);
                    if request == Request::End { told_to_end.push(client) } else { client.reply(&reply) }
                }
                Heard::Unknown => client.reply(&Reply::Refused(Refusal::Unknown)),
                Heard::Nothing if now() < client.until => clients.push(client),
                Heard::Nothing | Heard::Gone => {}
            }
        }
    }
    for client in told_to_end {
        client.reply(&Reply::Done);
    }
    Ok(())
}

/// Until somebody calls or asks, or that time has come.
fn wait(timer: &OwnedFd, wake: BootTime, listener: &Listener, clients: &[Client]) -> io::Result<()> {
    const NANOS: u64 = 1_000_000_000;
    let part = |nanos: u64| i64::try_from(nanos).unwrap_or(i64::MAX);
    // All zero would disarm it.
    let at = wake.0.max(1);
    let it_value = Timespec { tv_sec: part(at / NANOS), tv_nsec: part(at % NANOS) };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &once)?;
    let mut heard: Vec<_> = clients.iter().map(|client| PollFd::new(client, PollFlags::IN)).collect();
    heard.push(PollFd::new(timer, PollFlags::IN));
    if clients.len() < MAX_CLIENTS {
        heard.push(PollFd::new(listener, PollFlags::IN));
    }
    match poll(&mut heard, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests;
