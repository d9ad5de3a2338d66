//! What is known of nodes for a while only, and never enters the log: who answers, who may act unheard, and for how long.
//!
//! ```text
//!            the node (keep)                         the leader (grants)
//!   fence is empty, draws a nonce ── Arm ──▶ its next epoch
//!   fence is armed ◀──────────────────────── as the node applies it
//!   notes `sent` ──────────────────── renew ▶ a quorum confirms that it leads, after that: granted
//!   D = sent + lease ◀────────────── granted  notes when
//!                                             nothing granted for as long as `wait`: marks it, then Fence
//! ```

mod grants;
pub mod keep;
mod liveness;

pub use grants::{Denial, Grants};
pub use liveness::Liveness;
