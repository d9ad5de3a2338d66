//! What a fence tells PID 1 and the journal, which may hang: so it never waits for them.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use blixard_core::types::BootTime;
use rustix::io::ioctl_fionbio;
use sd_notify::NotifyState;

/// Least time between two signs of life: while it kills, it looks far more often than anybody has to know of.
const MIN_PERIOD: Duration = Duration::from_millis(100);

/// The service manager of this process, if it has one, and the journal.
pub struct Systemd {
    socket: Option<(UnixDatagram, OsString)>,
    journal: Box<dyn Write>,
    next_sign: BootTime,
    /// After how long without a sign of life it is to count as dead, once it was said.
    watchdog: Option<Duration>,
    status: String,
    complaint: String,
}

impl Systemd {
    /// Of the unit that this process is in. What nobody takes of its messages is lost.
    pub fn of_this_unit() -> Self {
        let _ = ioctl_fionbio(io::stderr(), true);
        Self::at(std::env::var_os("NOTIFY_SOCKET"), Box::new(io::stderr()))
    }

    pub fn at(path: Option<OsString>, journal: Box<dyn Write>) -> Self {
        let socket = path.and_then(|path| {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some((socket, path))
        });
        Self {
            socket,
            journal,
            next_sign: BootTime(0),
            watchdog: None,
            status: String::new(),
            complaint: String::new(),
        }
    }

    /// It has started: nothing runs.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// From now on it counts as dead after this time without a sign of life.
    pub fn set_watchdog(&mut self, timeout: Duration) {
        self.watchdog = Some(timeout);
        self.sign();
    }

    /// A sign of life, and how far it is.
    pub fn alive(&mut self, now: BootTime, status: String) {
        if self.status != status {
            self.tell(&[NotifyState::Status(&status)]);
            self.log(&status);
            self.status = status;
        }
        if self.next_sign <= now {
            self.next_sign = now.after(MIN_PERIOD);
            self.sign();
        }
    }

    /// With the time until the next, each time: any of them may be lost.
    fn sign(&self) {
        let micros = |timeout: Duration| u32::try_from(timeout.as_micros()).unwrap_or(u32::MAX);
        let timeout = self.watchdog.map(|timeout| NotifyState::WatchdogUsec(micros(timeout)));
        let states: Vec<_> = timeout.into_iter().chain([NotifyState::Watchdog]).collect();
        self.tell(&states);
    }

    /// Something is wrong; said once, not at each turn.
    pub fn complain(&mut self, complaint: String) {
        if self.complaint != complaint {
            self.log(&complaint);
            self.complaint = complaint;
        }
    }

    fn log(&mut self, message: &str) {
        let _ = writeln!(self.journal, "blixard fence: {message}");
    }

    /// What it can't take now is lost: it has enough to do.
    fn tell(&self, states: &[NotifyState<'_>]) {
        let Some((socket, path)) = &self.socket else { return };
        let message: Vec<String> = states.iter().map(ToString::to_string).collect();
        let message = message.join("\n");
        let _ = socket.send_to(message.as_bytes(), path);
    }
}
