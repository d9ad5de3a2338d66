//! How a fence is asked: one request and one reply a connection, each a packet, between processes of root.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use blixard_core::fence::{Reply, Request};
use blixard_core::types::BootTime;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    recv, send, socket_with,
};
use rustix::process::{Pid, Uid, geteuid};

/// Most clients that are waited for at a time; the others wait until one of these has asked.
pub const MAX_CLIENTS: usize = 32;
const BACKLOG: i32 = 128;
/// How long a client may take until it asks.
const MAX_SILENCE: Duration = Duration::from_secs(1);
/// How long a fence may take until it answers: one that takes longer hangs, and is killed for it.
const MAX_ANSWER: Duration = Duration::from_secs(2);
const MAX_REQUEST: usize = 4096;
const MAX_REPLY: usize = 256 * 1024;

/// Why a fence couldn't be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("cannot reach this host's fence at {}: does blixard-fence.service run?", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("this host's fence does not answer; see: journalctl -u blixard-fence")]
    Answer { source: io::Error },
    #[error("cannot understand this host's fence: it is of another version; drain the node, and reboot it")]
    Decode { source: postcard::Error },
}

/// Ask the fence of this host, and wait for what it says: at most two seconds, unless it is told to end.
///
/// # Errors
/// It isn't there, doesn't answer, or says what can't be understood: nothing may be started then.
pub fn ask(path: &Path, request: &Request) -> Result<Reply, AskError> {
    let unreachable = |source: Errno| AskError::Connect { path: path.to_owned(), source: source.into() };
    let silent = |source: Errno| AskError::Answer { source: source.into() };
    let packet = postcard::to_stdvec(request).map_err(|source| AskError::Decode { source })?;
    let socket = socket(SocketFlags::CLOEXEC).map_err(unreachable)?;
    set_socket_timeout(&socket, Timeout::Send, Some(MAX_ANSWER)).map_err(unreachable)?;
    let patience = (*request != Request::End).then_some(MAX_ANSWER);
    set_socket_timeout(&socket, Timeout::Recv, patience).map_err(unreachable)?;
    connect(&socket, &SocketAddrUnix::new(path).map_err(unreachable)?).map_err(unreachable)?;
    send(&socket, &packet, SendFlags::NOSIGNAL).map_err(silent)?;
    let mut packet = vec![0; MAX_REPLY];
    let length = loop {
        match recv(&socket, &mut packet[..], RecvFlags::empty()) {
            Ok((_, 0)) => return Err(silent(Errno::CONNRESET)),
            Ok((_, length)) => break length,
            Err(Errno::INTR) => {}
            Err(error) => return Err(silent(error)),
        }
    };
    postcard::from_bytes(&packet[..length.min(MAX_REPLY)]).map_err(|source| AskError::Decode { source })
}

/// Where a fence is called.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    /// Whose processes may call.
    owner: Uid,
}

impl Listener {
    /// In the place of whatever a fence before has left there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let socket = socket(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        listen(&socket, BACKLOG)?;
        Ok(Self { socket, owner: geteuid() })
    }

    /// Add those who have called, as far as there is room.
    pub fn accept(&self, clients: &mut Vec<Client>, now: BootTime) {
        while clients.len() < MAX_CLIENTS
            && let Ok(socket) = accept_with(&self.socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            if let Ok(peer) = socket_peercred(&socket)
                && peer.uid == self.owner
            {
                clients.push(Client { socket, pid: peer.pid, until: now.after(MAX_SILENCE) });
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// A process that has called, and may ask once.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    pub pid: Pid,
    /// When it is given up on.
    pub until: BootTime,
}

/// What a client has said.
#[derive(Debug)]
pub enum Heard {
    Request(Request),
    /// Something that this fence is too old for.
    Unknown,
    Nothing,
    Gone,
}

impl Client {
    pub fn hear(&self) -> Heard {
        let mut packet = [0; MAX_REQUEST];
        match recv(&self.socket, &mut packet[..], RecvFlags::empty()) {
            Ok((_, length)) if length > 0 => {
                postcard::from_bytes(&packet[..length.min(MAX_REQUEST)]).map_or(Heard::Unknown, Heard::Request)
            }
            Err(Errno::AGAIN | Errno::INTR) => Heard::Nothing,
            _ => Heard::Gone,
        }
    }

    /// Whether it is taken is the client's concern.
    pub fn reply(self, reply: &Reply) {
        let packet = postcard::to_stdvec(reply).expect("what a fence says can be encoded");
        let _ = send(&self.socket, &packet, SendFlags::NOSIGNAL);
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn socket(flags: SocketFlags) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(owner: Uid) -> usize {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fence.sock");
        let listener = Listener { owner, ..Listener::bind(&path).unwrap() };
        let caller = socket(SocketFlags::CLOEXEC).unwrap();
        connect(&caller, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let mut clients = Vec::new();
        listener.accept(&mut clients, BootTime(0));
        clients.len()
    }

    #[test]
    fn who_is_another_user_is_not_listened_to() {
        assert_eq!(accepted(geteuid()), 1);
        assert_eq!(accepted(Uid::from_raw(geteuid().as_raw() + 1)), 0);
    }
}
