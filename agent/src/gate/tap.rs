//! The runner's tap interfaces: made and attached to the bridge before it starts, removed when it has ended.
//!
//! A link of that name that isn't a tap of the instances' user is never touched, nor one that something uses.
//!
//! The kernel has taps configured by ioctl alone, and rustix has no safe form of these, so this file is the one place
//! of the gate with `unsafe`: [`ioctl_int`] and [`ioctl_ifreq`], each with the numbers of `linux/if_tun.h` and
//! `linux/sockios.h` and an argument of the type that these demand.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::ioctl::{IntegerSetter, Opcode, Updater, ioctl};
use rustix::net::{AddressFamily, SocketType};

/// Longest name of an interface (`IFNAMSIZ` less its ending zero).
const MAX_NAME: usize = 15;

const TUNSETIFF: Opcode = 0x4004_54ca;
const TUNSETPERSIST: Opcode = 0x4004_54cb;
const TUNSETOWNER: Opcode = 0x4004_54cc;
const SIOCGIFFLAGS: Opcode = 0x8913;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFHWADDR: Opcode = 0x8924;
const SIOCBRADDIF: Opcode = 0x89a2;

const IFF_UP: u16 = 0x1;
const IFF_TAP: u16 = 0x2;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const ARPHRD_ETHER: u16 = 1;

/// A runner's taps, as its files in `share/microvm` name them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taps {
    names: Vec<String>,
    flags: u16,
}

/// Why a tap can't be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error("cannot read {path}: is the runner whole? Try nix-store --verify-path on it")]
    Read { path: String, source: io::Error },
    #[error("cannot make tap {name:?}: a link's name has 1 to {MAX_NAME} of a-z, A-Z, 0-9, '-', '_' and '.'")]
    Name { name: String },
    #[error("cannot make taps with the flag {flag:?}: this gate knows vnet_hdr and multi_queue")]
    Flag { flag: String },
    #[error(
        "cannot make tap {name}: a link of that name is here and isn't a tap of uid {uid}; \
         rename the VM's interface, or remove it with: ip link del {name}"
    )]
    Foreign { name: String, uid: u32 },
    #[error("cannot make tap {name}: it is in use; does another VM have an interface of the same name?")]
    InUse { name: String },
    #[error("cannot {attempt} tap {name}")]
    Configure { attempt: &'static str, name: String, source: io::Error },
    #[error("cannot attach tap {name} to bridge {bridge}: this host has no such bridge; make it, or set vms.bridge")]
    NoBridge { name: String, bridge: String, source: io::Error },
    #[error("cannot attach tap {name} to bridge {bridge}: is it a bridge?")]
    Attach { name: String, bridge: String, source: io::Error },
}

/// What the host has under a tap's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Link {
    Absent,
    /// A persistent tap of the instances' user that nothing has open: one that a run left behind.
    Ours,
    /// The same, but a process has it open.
    InUse,
    Foreign,
}

impl Taps {
    /// The taps that a runner wants; one without the file wants none.
    ///
    /// # Errors
    /// A file that can't be read, a name that no link can have, an unknown flag.
    pub fn of(runner: &Path) -> Result<Self, TapError> {
        let text = |file: &str| {
            let path = runner.join("share/microvm").join(file);
            match fs::read_to_string(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
                read => read.map_err(|source| TapError::Read { path: path.display().to_string(), source }),
            }
        };
        Self::parse(&text("tap-interfaces")?, &text("tap-flags")?)
    }

    fn parse(interfaces: &str, flags: &str) -> Result<Self, TapError> {
        let names: Vec<String> = interfaces.split_whitespace().map(str::to_owned).collect();
        let valid = |name: &&String| {
            let known = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            name.len() <= MAX_NAME && name.bytes().all(known) && *name != "." && *name != ".."
        };
        if let Some(name) = names.iter().find(|name| !valid(name)) {
            return Err(TapError::Name { name: name.chars().take(100).collect() });
        }
        let flags = flags.split_whitespace().try_fold(IFF_TAP | IFF_NO_PI, |flags, flag| match flag {
            "vnet_hdr" => Ok(flags | IFF_VNET_HDR),
            "multi_queue" => Ok(flags | IFF_MULTI_QUEUE),
            _ => Err(TapError::Flag { flag: flag.chars().take(100).collect() }),
        })?;
        Ok(Self { names, flags })
    }

    /// Make each of them, or take over what a run before has left; owned by `uid`, up, and a port of the bridge.
    ///
    /// # Errors
    /// The first that can't be made; what was made before it is left for [`Taps::remove`].
    pub fn make(&self, uid: u32, bridge: Option<&str>) -> Result<(), TapError> {
        self.names.iter().try_for_each(|name| {
            match link(Path::new("/sys/class/net"), name, uid) {
                Link::Foreign => return Err(TapError::Foreign { name: name.clone(), uid }),
                Link::InUse => return Err(TapError::InUse { name: name.clone() }),
                Link::Absent | Link::Ours => {}
            }
            let tap = self.open(name)?;
            let failed = |attempt| move |source| TapError::Configure { attempt, name: name.clone(), source };
            ioctl_int(&tap, TUNSETOWNER, uid as usize).map_err(failed("set the owner of"))?;
            ioctl_int(&tap, TUNSETPERSIST, 1).map_err(failed("keep"))?;
            let socket = socket().map_err(failed("configure"))?;
            if let Some(bridge) = bridge {
                set_address(&socket, name).map_err(failed("set the address of"))?;
                attach(&socket, name, bridge)?;
            }
            set_up(&socket, name).map_err(failed("bring up"))
        })
    }

    /// Remove those that are ours and unused; all of them are tried.
    ///
    /// # Errors
    /// The first that can't be removed.
    pub fn remove(&self, uid: u32) -> Result<(), TapError> {
        let ours = self.names.iter().filter(|name| link(Path::new("/sys/class/net"), name, uid) == Link::Ours);
        let removed = ours.map(|name| {
            let tap = self.open(name)?;
            ioctl_int(&tap, TUNSETPERSIST, 0).map_err(|source| TapError::Configure {
                attempt: "remove",
                name: name.clone(),
                source,
            })
        });
        removed.fold(Ok(()), Result::and)
    }

    fn open(&self, name: &str) -> Result<OwnedFd, TapError> {
        let failed = |source: io::Error| TapError::Configure { attempt: "open", name: name.to_owned(), source };
        let tun = fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun").map_err(failed)?;
        let mut request = Ifreq::named(name);
        request.set(0, self.flags);
        ioctl_ifreq(&tun, TUNSETIFF, &mut request).map_err(|error| {
            if error.kind() == io::ErrorKind::ResourceBusy {
                TapError::InUse { name: name.to_owned() }
            } else {
                failed(error)
            }
        })?;
        Ok(tun.into())
    }
}

fn link(sys_class_net: &Path, name: &str, uid: u32) -> Link {
    let dir = sys_class_net.join(name);
    if fs::symlink_metadata(&dir).is_err() {
        return Link::Absent;
    }
    let value = |file| fs::read_to_string(dir.join(file)).map(|text| text.trim().to_owned()).unwrap_or_default();
    let flags = value("tun_flags");
    let flags = flags.strip_prefix("0x").and_then(|digits| u16::from_str_radix(digits, 16).ok()).unwrap_or(0);
    if flags & IFF_TAP == 0 || value("owner") != uid.to_string() {
        Link::Foreign
    } else if value("carrier") == "1" {
        Link::InUse
    } else {
        Link::Ours
    }
}

/// A bridge takes the lowest address of its ports for its own unless it was given one, and peers would lose track of
/// the host; so taps have addresses above all others, each the same whenever it is made.
fn set_address(socket: &OwnedFd, name: &str) -> io::Result<()> {
    // FNV-1a: any hash that spreads names will do.
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut request = Ifreq::named(name);
    request.set(0, ARPHRD_ETHER);
    request.value[2] = 0xfe;
    request.value[3..8].copy_from_slice(&hash.to_be_bytes()[..5]);
    ioctl_ifreq(socket, SIOCSIFHWADDR, &mut request)
}

fn attach(socket: &OwnedFd, name: &str, bridge: &str) -> Result<(), TapError> {
    let port_of = fs::read_link(format!("/sys/class/net/{name}/brport/bridge"));
    if port_of.is_ok_and(|path| path.file_name().is_some_and(|current| current == bridge)) {
        return Ok(());
    }
    let (tap, to) = (name.to_owned(), bridge.to_owned());
    let failed = |source| TapError::Attach { name: name.to_owned(), bridge: bridge.to_owned(), source };
    rustix::net::netdevice::name_to_index(socket, bridge).map_err(|error| TapError::NoBridge {
        name: tap,
        bridge: to,
        source: error.into(),
    })?;
    let index = rustix::net::netdevice::name_to_index(socket, name).map_err(|error| failed(error.into()))?;
    let mut request = Ifreq::named(bridge);
    request.value[..4].copy_from_slice(&index.to_ne_bytes());
    ioctl_ifreq(socket, SIOCBRADDIF, &mut request).map_err(failed)
}

fn set_up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    let mut request = Ifreq::named(name);
    ioctl_ifreq(socket, SIOCGIFFLAGS, &mut request)?;
    let flags = u16::from_ne_bytes([request.value[0], request.value[1]]);
    request.set(0, flags | IFF_UP);
    ioctl_ifreq(socket, SIOCSIFFLAGS, &mut request)
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?)
}

/// `struct ifreq` of `netdevice(7)`: a name, and a union of 24 bytes.
#[repr(C, align(8))]
struct Ifreq {
    name: [u8; MAX_NAME + 1],
    value: [u8; 24],
}

impl Ifreq {
    /// Only for names of at most [`MAX_NAME`] bytes; of a longer one, the rest is left out.
    fn named(name: &str) -> Self {
        let mut request = Self { name: [0; MAX_NAME + 1], value: [0; 24] };
        request.name.iter_mut().take(MAX_NAME).zip(name.bytes()).for_each(|(to, from)| *to = from);
        request
    }
    fn set(&mut self, at: usize, value: u16) {
        self.value[at..at + 2].copy_from_slice(&value.to_ne_bytes());
    }
}

/// One of the `TUNSET…` calls that take a number.
fn ioctl_int(tap: impl AsFd, request: Opcode, value: usize) -> io::Result<()> {
    // SAFETY: TUNSETOWNER and TUNSETPERSIST take an integer for their argument and read no memory.
    unsafe {
        match request {
            TUNSETOWNER => ioctl(tap, IntegerSetter::<TUNSETOWNER>::new_usize(value))?,
            TUNSETPERSIST => ioctl(tap, IntegerSetter::<TUNSETPERSIST>::new_usize(value))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
    }
    Ok(())
}

/// One of the calls that take a `struct ifreq`.
fn ioctl_ifreq(fd: impl AsFd, request: Opcode, argument: &mut Ifreq) -> io::Result<()> {
    // SAFETY: each of these reads, and at most writes, one `struct ifreq`, which `Ifreq` is as long and as aligned as.
    unsafe {
        match request {
            TUNSETIFF => ioctl(fd, Updater::<TUNSETIFF, _>::new(argument))?,
            SIOCGIFFLAGS => ioctl(fd, Updater::<SIOCGIFFLAGS, _>::new(argument))?,
            SIOCSIFFLAGS => ioctl(fd, Updater::<SIOCSIFFLAGS, _>::new(argument))?,
            SIOCSIFHWADDR => ioctl(fd, Updater::<SIOCSIFHWADDR, _>::new(argument))?,
            SIOCBRADDIF => ioctl(fd, Updater::<SIOCBRADDIF, _>::new(argument))?,
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runners_files_name_its_taps_and_their_flags() {
        let taps = Taps::parse("vm-web-0\nvm-web-0b\n", "vnet_hdr multi_queue\n").unwrap();
        assert_eq!(taps.names, ["vm-web-0", "vm-web-0b"]);
        assert_eq!(taps.flags, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_MULTI_QUEUE);
        assert_eq!(Taps::parse("", "").unwrap().names, [""; 0]);
    }

    #[test]
    fn names_that_no_link_can_have_and_unknown_flags_are_refused() {
        for name in ["a-name-of-16-char", "tap%d", "a/b", "..", "é"] {
            assert!(matches!(Taps::parse(name, ""), Err(TapError::Name { .. })), "{name}");
        }
        assert!(matches!(Taps::parse("vm", "napi"), Err(TapError::Flag { .. })));
    }

    #[test]
    fn a_runner_without_the_files_has_no_taps() {
        assert_eq!(Taps::of(Path::new("/nowhere")).unwrap().names, [""; 0]);
    }

    #[test]
    fn only_an_unused_tap_of_the_instances_user_is_ours() {
        let sys = tempfile::tempdir().unwrap();
        let make = |name: &str, files: &[(&str, &str)]| {
            fs::create_dir(sys.path().join(name)).unwrap();
            for (file, text) in files {
                fs::write(sys.path().join(name).join(file), text).unwrap();
            }
        };
        make("eth0", &[("carrier", "1\n")]);
        make("left", &[("tun_flags", "0x5902\n"), ("owner", "990\n"), ("carrier", "0\n")]);
        make("used", &[("tun_flags", "0x5902\n"), ("owner", "990\n"), ("carrier", "1\n")]);
        make("other", &[("tun_flags", "0x5902\n"), ("owner", "-1\n"), ("carrier", "0\n")]);
        make("tun", &[("tun_flags", "0x1001\n"), ("owner", "990\n")]);
        let of = |name| link(sys.path(), name, 990);
        assert_eq!(of("none"), Link::Absent);
        assert_eq!(of("left"), Link::Ours);
        assert_eq!(of("used"), Link::InUse);
        assert_eq!([of("eth0"), of("other"), of("tun")], [Link::Foreign; 3]);
    }
}
