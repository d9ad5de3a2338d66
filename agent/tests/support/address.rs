//! Addresses for servers on this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};

/// A port on a loopback address that no other test has, and that no outgoing connection is given.
pub fn free_address() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high | 1, low, TAKEN.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr()).expect("this machine has a loopback network")
}
