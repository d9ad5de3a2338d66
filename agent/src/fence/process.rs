//! What a fence decides, done: to the slice, the watchdogs, and who asks.

use blixard_core::fence::{Action, Fence, Refusal, Reply, Request, Unable};
use blixard_core::types::{BootTime, LeaseTerms, Nonce};
use rustix::process::Pid;
use rustix::rand::{GetRandomFlags, getrandom};

use super::slice::Slice;
use super::systemd::Systemd;
use super::watchdog::Watchdog;

/// One life of a fence.
pub struct Process {
    fence: Fence,
    slice: Slice,
    watchdog: Box<dyn Watchdog>,
    systemd: Systemd,
    /// What keeps it from being armed as long as it lives.
    unable: Option<Unable>,
}

impl Process {
    pub fn new(slice: Slice, watchdog: Box<dyn Watchdog>, systemd: Systemd, unable: Option<Unable>) -> Self {
        Self { fence: Fence::default(), slice, watchdog, systemd, unable }
    }

    /// Answer what this process asks.
    pub fn answer(&mut self, now: BootTime, request: &Request, asking: Pid) -> Reply {
        let reply = self.fence.handle(now, request, |instance| self.slice.group(instance, asking));
        match request {
            Request::Arm { terms, .. } if reply == Reply::Done => match self.count_by(*terms) {
                Ok(()) => Reply::Done,
                Err(unable) => {
                    self.unable = Some(unable.clone());
                    self.fence.ready(Err(unable.clone()));
                    Reply::Refused(Refusal::Unable(unable))
                }
            },
            _ => reply,
        }
    }

    /// Do what is to be done now; returns when to look again, at the latest, unless it is to end.
    pub fn turn(&mut self, now: BootTime) -> Option<BootTime> {
        let turn = self.fence.tick(now, self.slice.is_empty());
        match turn.action {
            Action::Wait => {}
            Action::Kill => {
                if let Err(error) = self.slice.kill() {
                    self.systemd.complain(format!("cannot kill what is in {}: {error}", self.slice));
                }
            }
            Action::Draw => {
                let drawn = self.draw();
                self.fence.ready(drawn);
                self.systemd.ready();
            }
            Action::End => {
                self.watchdog.disarm();
                return None;
            }
        }
        if turn.pet
            && let Err(error) = self.watchdog.pet()
        {
            self.systemd.complain(format!("cannot keep the watchdog device from resetting this host: {error}"));
        }
        self.systemd.alive(now, self.fence.stage().to_string());
        Some(turn.wake)
    }

    /// What arms it once, if it can be armed at all. From here on the watchdog device counts.
    fn draw(&mut self) -> Result<Nonce, Unable> {
        if let Some(unable) = &self.unable {
            return Err(unable.clone());
        }
        self.watchdog.open()?;
        let mut nonce = [0; 16];
        getrandom(&mut nonce, GetRandomFlags::empty()).expect("so few bytes can always be had");
        Ok(Nonce(nonce))
    }

    /// Have the watchdogs leave room within what the cluster waits.
    fn count_by(&mut self, terms: LeaseTerms) -> Result<(), Unable> {
        self.watchdog.set_timeout(terms.device_timeout_seconds())?;
        self.systemd.set_watchdog(terms.fence_watchdog());
        Ok(())
    }
}
