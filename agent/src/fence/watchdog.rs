//! The watchdog device: what resets the host if its fence doesn't say in time that all is well.
//!
//! It goes on counting when whoever has it open dies; only who closes it in the right way stops it (`linux/watchdog.h`).
//! [`Device::set_timeout`] is the one place with `unsafe`: a number of that header, with an argument of the type it demands.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use blixard_core::fence::Unable;
use rustix::fs::OFlags;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

const WDIOC_SETTIMEOUT: Opcode = opcode::read_write::<u32>(b'W', 6);
/// Closed after this was written, it stops counting, if its driver allows that.
const MAGIC_CLOSE: &[u8] = b"V";

/// What resets the host unless it is petted.
pub trait Watchdog {
    /// Take it, if that wasn't done yet: it counts from now on.
    ///
    /// # Errors
    /// It isn't there, or another has it.
    fn open(&mut self) -> Result<(), Unable>;

    /// After how long without being petted it is to reset the host.
    ///
    /// # Errors
    /// It can't count so far, or not so little.
    fn set_timeout(&mut self, seconds: u32) -> Result<(), Unable>;

    /// All is well; nothing is said of one that isn't open.
    ///
    /// # Errors
    /// It wasn't heard: the host will be reset.
    fn pet(&mut self) -> io::Result<()>;

    /// Stop it from counting.
    fn disarm(&mut self);
}

/// A device of the kernel's watchdog interface.
#[derive(Debug)]
pub struct Device {
    path: PathBuf,
    file: Option<File>,
}

impl Device {
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), file: None }
    }

    fn unable(&self, reason: &dyn fmt::Display) -> Unable {
        Unable::Watchdog { device: self.path.display().to_string(), reason: reason.to_string() }
    }
}

impl Watchdog for Device {
    fn open(&mut self) -> Result<(), Unable> {
        if self.file.is_none() {
            let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are small");
            let opened = fs::OpenOptions::new().write(true).custom_flags(flags).open(&self.path);
            self.file = Some(opened.map_err(|error| self.unable(&error))?);
        }
        Ok(())
    }

    fn set_timeout(&mut self, seconds: u32) -> Result<(), Unable> {
        let Some(file) = &self.file else { return Err(self.unable(&"it isn't open")) };
        let mut granted = seconds;
        // SAFETY: WDIOC_SETTIMEOUT reads and writes an int.
        let set = unsafe { ioctl(file, Updater::<WDIOC_SETTIMEOUT, u32>::new(&mut granted)) };
        set.map_err(|error| self.unable(&format_args!("it can't be set to {seconds} s: {error}")))?;
        // Drivers round. Much less would reset a host whose fence is well, and more one whose instances run elsewhere.
        if !(seconds.div_ceil(2)..=seconds).contains(&granted) {
            return Err(self.unable(&format_args!("set to {seconds} s, it counts to {granted} s")));
        }
        Ok(())
    }

    fn pet(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(b"1"))
    }

    fn disarm(&mut self) {
        if let Some(mut file) = self.file.take() {
            // If it goes on counting, whoever shuts the host down has to be quick.
            let _ = file.write_all(MAGIC_CLOSE);
        }
    }
}

/// None, as the host's configuration says.
#[derive(Debug)]
pub struct NoWatchdog;

impl Watchdog for NoWatchdog {
    fn open(&mut self) -> Result<(), Unable> {
        Ok(())
    }

    fn set_timeout(&mut self, _seconds: u32) -> Result<(), Unable> {
        Ok(())
    }

    fn pet(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn disarm(&mut self) {}
}
