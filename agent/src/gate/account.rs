//! Names of users and groups → ids, from the host's own files, and the drop of privileges to them.
//!
//! The accounts that instances run as are local ones, so that no name service can be in the way of a start.

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{Gid, Uid};

use super::files::Account;

/// The group that may open `/dev/kvm`; a VM is in it wherever the host has it, a task is not.
pub const KVM: &str = "kvm";

/// What an account's names stand for on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    /// Every group of the process beside its own: those that list the user, and one more that was asked for.
    pub groups: Vec<u32>,
}

/// Why a process can't become the account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("cannot read {path}")]
    Read { path: &'static str, source: io::Error },
    #[error("cannot run anything as user {user:?}: /etc/passwd has no such user; declare it, or set vms.user")]
    NoUser { user: String },
    #[error("cannot run anything as user {user:?}: it is root")]
    Root { user: String },
    #[error("cannot run anything in group {group:?}: /etc/group has no such group; declare it, or set vms.group")]
    NoGroup { group: String },
    #[error("cannot change to uid {uid} and gid {gid}: is this process root?")]
    Drop { uid: u32, gid: u32, source: io::Error },
}

impl Ids {
    /// Look an account up in `/etc/passwd` and `/etc/group`; the group `also` is added where the host has it.
    ///
    /// # Errors
    /// A file that can't be read, a name that isn't there, or root.
    pub fn of(account: &Account, also: Option<&str>) -> Result<Self, AccountError> {
        let text = |path: &'static str| {
            fs::read_to_string(Path::new(path)).map_err(|source| AccountError::Read { path, source })
        };
        resolve(account, also, &text("/etc/passwd")?, &text("/etc/group")?)
    }

    /// Become this account for good. Only for a process of one thread, as the kernel changes no other.
    ///
    /// # Errors
    /// [`AccountError::Drop`]; the process may then have dropped a part, and must end.
    pub fn assume(&self) -> Result<(), AccountError> {
        let groups: Vec<Gid> = self.groups.iter().map(|id| Gid::from_raw(*id)).collect();
        rustix::thread::set_thread_groups(&groups)
            .and_then(|()| rustix::thread::set_thread_gid(Gid::from_raw(self.gid)))
            .and_then(|()| rustix::thread::set_thread_uid(Uid::from_raw(self.uid)))
            .map_err(|error| AccountError::Drop { uid: self.uid, gid: self.gid, source: error.into() })
    }
}

fn resolve(account: &Account, also: Option<&str>, passwd: &str, group: &str) -> Result<Ids, AccountError> {
    // name:password:uid:gid:…
    let uid = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == account.user && fields.len() > 2)
        .and_then(|fields| fields[2].parse().ok())
        .ok_or_else(|| AccountError::NoUser { user: account.user.clone() })?;
    if uid == 0 {
        return Err(AccountError::Root { user: account.user.clone() });
    }
    // name:password:gid:member,member
    let mut gid = None;
    let mut groups = Vec::new();
    for fields in group.lines().map(|line| line.split(':').collect::<Vec<_>>()) {
        let [name, _, id, members] = fields[..] else { continue };
        let Ok(id) = id.parse::<u32>() else { continue };
        if name == account.group {
            gid = Some(id);
        }
        if Some(name) == also || members.split(',').any(|member| member == account.user) {
            groups.push(id);
        }
    }
    let gid = gid.ok_or_else(|| AccountError::NoGroup { group: account.group.clone() })?;
    Ok(Ids { uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\nbroken\nblixard-vm:x:990:980::/var/empty:/bin/false\n";
    const GROUP: &str = "root:x:0:\nkvm:x:104:other\nblixard:x:980:\nvideo:x:44:blixard-vm,other\nrender:x:45:other\n";

    fn account(user: &str, group: &str) -> Account {
        Account { user: user.to_owned(), group: group.to_owned() }
    }

    #[test]
    fn an_account_has_its_own_groups_and_the_one_asked_for() {
        let of = |also| resolve(&account("blixard-vm", "blixard"), also, PASSWD, GROUP).unwrap();
        assert_eq!(of(Some(KVM)), Ids { uid: 990, gid: 980, groups: vec![104, 44] });
        assert_eq!(of(None).groups, [44]);
        assert_eq!(of(Some("nowhere")).groups, [44]);
    }

    #[test]
    fn names_that_are_not_there_and_root_are_refused() {
        for (user, group, word) in [("web", "kvm", "web"), ("blixard-vm", "web", "web"), ("root", "kvm", "root")] {
            let error = resolve(&account(user, group), None, PASSWD, GROUP).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
