//! Asks a host's fence as the agent does, in JSON: `ask_fence /run/blixard/fence.sock '"Status"'`.
//!
//! `tests/the_fence_needs_nobody` is an agent of its own with it.

use std::error::Error;
use std::path::Path;

use blixard_core::fence::Request;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, request] = &arguments[..] else { return Err("usage: ask_fence SOCKET REQUEST".into()) };
    let request: Request = serde_json::from_str(request)?;
    let reply = blixard::fence::ask(Path::new(socket), &request)?;
    println!("{}", serde_json::to_string(&reply)?);
    Ok(())
}
