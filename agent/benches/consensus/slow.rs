//! A slower disk: every fsync of a program takes a fixed time longer, whatever the program is written in.
//!
//! A seccomp filter hands each of its sync calls to a thread of the bench, which lets it go on after the delay.
#![allow(unsafe_code, reason = "seccomp's notifications have no safe interface")]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::process::Process;
use crate::wrapper::wrap;

/// The verb under which the bench starts itself to become the slowed program.
pub const VERB: &str = "with-slow-sync";
/// Syncs of one program that are held at the same time.
const THREADS: usize = 8;
const SYNCS: [libc::c_long; 4] = [libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_sync_file_range, libc::SYS_msync];

/// Starts a program whose output is added to `log`; with `slow`, each of its fsyncs takes so much longer.
pub fn start(mut command: Command, log: &Path, slow: Option<Duration>) -> Process {
    let supervisor = slow.map(|delay| SlowSync::wrap(&mut command, delay));
    let process = Process::start(command, log);
    if let Some(supervisor) = supervisor {
        supervisor.attend();
    }
    process
}

/// Who will hold the syncs of a program that is about to be started.
struct SlowSync {
    socket: UnixStream,
    delay: Duration,
}

impl SlowSync {
    /// Has `command` start the bench, which becomes what `command` was.
    fn wrap(command: &mut Command, delay: Duration) -> Self {
        let (socket, theirs) = UnixStream::pair().expect("the system has a socket to spare");
        let mut bench = Command::new(std::env::current_exe().expect("the bench knows its own path"));
        bench.arg(VERB).stdin(Stdio::from(OwnedFd::from(theirs)));
        *command = wrap(bench, command);
        Self { socket, delay }
    }

    /// Takes the listener over from the program, and holds its syncs until it ends.
    fn attend(self) {
        let listener = Arc::new(receive(&self.socket));
        for _ in 0..THREADS {
            let (listener, delay) = (listener.clone(), self.delay);
            std::thread::spawn(move || hold(&listener, delay));
        }
    }
}

/// In the started program: installs the filter, hands its listener over, and becomes `program`.
pub fn become_slow(program: &str, arguments: &[String]) -> ! {
    rustix::thread::set_no_new_privs(true).expect("a program may give privileges up");
    send(&install());
    let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
    panic!("cannot become {program}: {error}");
}

fn install() -> OwnedFd {
    let statement = |code: u32, jf: u8, k: u32| {
        let code = u16::try_from(code).expect("codes have 16 bits");
        libc::sock_filter { code, jt: 0, jf, k }
    };
    let (load, jump, end) = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ, libc::BPF_RET);
    // The number of the call is the first field of `seccomp_data`.
    let mut filter = vec![statement(load, 0, 0)];
    for call in SYNCS {
        filter.push(statement(jump | libc::BPF_K, 1, u32::try_from(call).expect("calls have small numbers")));
        filter.push(statement(end | libc::BPF_K, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    filter.push(statement(end | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW));
    let len = u16::try_from(filter.len()).expect("it is short");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let (mode, flags) = (libc::SECCOMP_SET_MODE_FILTER, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    // SAFETY: the program and its filter live until the call returns, which copies them.
    let listener = unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) };
    assert!(listener >= 0, "seccomp refuses the filter: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just opened it, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(listener).expect("descriptors are small")) }
}

fn send(listener: &OwnedFd) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors = [listener.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)), "it has room for one");
    sendmsg(std::io::stdin(), &[IoSlice::new(&[0])], &mut ancillary, SendFlags::empty()).expect("the bench listens");
}

fn receive(socket: &UnixStream) -> OwnedFd {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::empty());
    received.expect("the program hands its listener over");
    let descriptors = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    descriptors.expect("the program could not install its filter: its log says why")
}

/// Lets each sync of the program go on after the delay; returns when the program has ended.
fn hold(listener: &OwnedFd, delay: Duration) {
    // Otherwise the kernel may round each delay up by 50 µs.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1000));
    loop {
        let poll = rustix::event::PollFd::new(listener, rustix::event::PollFlags::IN);
        let mut polls = [poll];
        let _ = rustix::event::poll(&mut polls, None);
        if !polls[0].revents().contains(rustix::event::PollFlags::IN) {
            return;
        }
        // SAFETY: all zeroes is a value of this plain structure, and what the kernel wants to be given.
        let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one such structure to it.
        if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut request) } != 0 {
            // Another thread has it, or its caller is gone.
            continue;
        }
        std::thread::sleep(delay);
        let go_on = u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("it is one bit");
        let response = libc::seccomp_notif_resp { id: request.id, val: 0, error: 0, flags: go_on };
        // SAFETY: the kernel reads one such structure from it. If the caller is gone, there is nobody to answer.
        unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw const response) };
    }
}

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of `<linux/seccomp.h>`.
const RECEIVE: libc::Ioctl = request::<libc::seccomp_notif>(0);
const SEND: libc::Ioctl = request::<libc::seccomp_notif_resp>(1);

const fn request<T>(number: libc::Ioctl) -> libc::Ioctl {
    let (read_and_write, seccomp) = (3, b'!' as libc::Ioctl);
    read_and_write << 30 | (size_of::<T>() as libc::Ioctl) << 16 | seccomp << 8 | number
}
