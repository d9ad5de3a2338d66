//! Addresses for servers on this machine.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

/// A port on the loopback address of this process, which no other test has, and which no client is given while its server
/// is away.
pub fn free_address() -> SocketAddr {
    // Below 32768, where Linux takes the ports of clients from.
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_000, "this machine has a loopback network with free ports");
        let address = SocketAddr::from((Ipv4Addr::new(127, high, middle, low), port));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
