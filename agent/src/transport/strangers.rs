//! What those may take who have shown no certificate of a member (yet): connections, handshakes and tries to join, of all
//! of them together and of one address, so that none of them keeps the others out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

/// Most TLS handshakes under way: of all, and of one address.
const MAX_HANDSHAKES: (usize, usize) = (64, 16);
/// Most connections without a member's certificate: of all, and of one address.
const MAX_STRANGERS: (usize, usize) = (64, 16);
/// Most connections of one address a minute, members' too: a peer that restarts is called twice a second at most.
const MAX_CONNECTIONS: u32 = 1200;
/// Most tries to join a minute that come to nothing: of all, and of one address. Who waits for a person tries less often.
const MAX_TRIES: (u32, u32) = (200, 20);
/// Most addresses that are told apart, by far more than a cluster has nodes; the others are taken for one.
const MAX_ADDRESSES: usize = 16_384;
const MINUTE: Duration = Duration::from_secs(60);

/// Why a stranger is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    #[error("too many TLS handshakes are under way")]
    Handshakes,
    #[error("too many connections without a member's certificate")]
    Strangers,
    #[error("too many connections of one address within a minute")]
    Connections,
    #[error("too many tries to join have failed within a minute: try again later")]
    Tries,
}

/// What they have taken.
#[derive(Default)]
pub struct Strangers(Mutex<Taken>);

#[derive(Default)]
struct Taken {
    all: Share,
    each: BTreeMap<Origin, Share>,
}

/// An IPv4 address, or a network of IPv6 addresses that is given to one customer; nothing for those that aren't told apart.
type Origin = Option<IpAddr>;

#[derive(Default)]
struct Share {
    handshakes: usize,
    strangers: usize,
    connections: Window,
    tries: Window,
}

/// How often something happened in a minute.
#[derive(Default)]
struct Window {
    began: Option<Instant>,
    count: u32,
}

impl Window {
    fn count(&mut self, now: Instant) -> &mut u32 {
        if self.began.is_none_or(|began| now.duration_since(began) >= MINUTE) {
            *self = Self { began: Some(now), count: 0 };
        }
        &mut self.count
    }

    /// Whether it happens no more often than this, this time too.
    fn takes(&mut self, limit: u32, now: Instant) -> bool {
        let count = self.count(now);
        *count = count.saturating_add(1);
        *count <= limit
    }
}

impl Share {
    fn is_idle(&mut self, now: Instant) -> bool {
        let counts = *self.connections.count(now) + *self.tries.count(now);
        self.handshakes + self.strangers == 0 && counts == 0
    }
}

impl Taken {
    fn origin(&mut self, remote: IpAddr, now: Instant) -> Origin {
        let origin = Some(origin_of(remote));
        if !self.each.contains_key(&origin) && self.each.len() >= MAX_ADDRESSES {
            self.each.retain(|_, share| !share.is_idle(now));
            if self.each.len() >= MAX_ADDRESSES {
                return None;
            }
        }
        origin
    }

    fn shares(&mut self, origin: Origin) -> (&mut Share, &mut Share) {
        (&mut self.all, self.each.entry(origin).or_default())
    }
}

impl Strangers {
    /// A place for a connection of `remote`, on which TLS is to be agreed.
    ///
    /// # Errors
    /// That there is none.
    pub fn connect(self: &Arc<Self>, remote: IpAddr, now: Instant) -> Result<Place, TooMany> {
        let mut taken = self.taken();
        let origin = taken.origin(remote, now);
        let (all, own) = taken.shares(origin);
        if !own.connections.takes(MAX_CONNECTIONS, now) {
            return Err(TooMany::Connections);
        }
        if all.handshakes >= MAX_HANDSHAKES.0 || own.handshakes >= MAX_HANDSHAKES.1 {
            return Err(TooMany::Handshakes);
        }
        all.handshakes += 1;
        own.handshakes += 1;
        Ok(Place { strangers: self.clone(), origin, stranger: false })
    }

    /// Whether `remote` may try to join; counted until [`Self::forgive`].
    ///
    /// # Errors
    /// That it may not for now.
    pub fn try_join(&self, remote: IpAddr, now: Instant) -> Result<(), TooMany> {
        let mut taken = self.taken();
        let origin = taken.origin(remote, now);
        let (all, own) = taken.shares(origin);
        // Who is turned away for its own tries takes none of the others'.
        let may = own.tries.takes(MAX_TRIES.1, now) && all.tries.takes(MAX_TRIES.0, now);
        if may { Ok(()) } else { Err(TooMany::Tries) }
    }

    /// The last try of `remote` has come to something.
    pub fn forgive(&self, remote: IpAddr, now: Instant) {
        let mut taken = self.taken();
        let origin = taken.origin(remote, now);
        let (all, own) = taken.shares(origin);
        for window in [&mut all.tries, &mut own.tries] {
            let count = window.count(now);
            *count = count.saturating_sub(1);
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// A connection's place, given up when it is dropped.
pub struct Place {
    strangers: Arc<Strangers>,
    origin: Origin,
    /// TLS was agreed, and no certificate shown.
    stranger: bool,
}

impl Place {
    /// TLS was agreed without a certificate.
    ///
    /// # Errors
    /// That there is no place for another such connection.
    pub fn stay_stranger(mut self) -> Result<Self, TooMany> {
        let shared = self.strangers.clone();
        let mut taken = shared.taken();
        let (all, own) = taken.shares(self.origin);
        if all.strangers >= MAX_STRANGERS.0 || own.strangers >= MAX_STRANGERS.1 {
            drop(taken);
            return Err(TooMany::Strangers);
        }
        for share in [all, own] {
            share.handshakes -= 1;
            share.strangers += 1;
        }
        drop(taken);
        self.stranger = true;
        Ok(self)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.strangers.taken();
        let (all, own) = taken.shares(self.origin);
        for share in [all, own] {
            let count = if self.stranger { &mut share.strangers } else { &mut share.handshakes };
            *count -= 1;
        }
    }
}

fn origin_of(remote: IpAddr) -> IpAddr {
    match remote.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    fn fill(strangers: &Arc<Strangers>, number: u32, now: Instant) -> (Vec<Place>, TooMany) {
        let mut places = Vec::new();
        loop {
            match strangers.connect(address(number), now) {
                Ok(place) => places.push(place),
                Err(error) => return (places, error),
            }
        }
    }

    #[tokio::test]
    async fn one_address_takes_only_its_own_share_of_the_handshakes() {
        let (strangers, now) = (Arc::new(Strangers::default()), Instant::now());
        let mut all = Vec::new();
        for number in 0..4 {
            let (places, error) = fill(&strangers, number, now);
            assert_eq!((places.len(), error), (16, TooMany::Handshakes));
            all.extend(places);
        }
        assert_eq!(strangers.connect(address(4), now).err(), Some(TooMany::Handshakes), "and all of them no more");
        all.pop();
        assert!(strangers.connect(address(4), now).is_ok());
    }

    #[tokio::test]
    async fn strangers_that_stay_leave_room_for_handshakes_and_take_only_their_own_share() {
        let (strangers, now) = (Arc::new(Strangers::default()), Instant::now());
        let connect = |number| strangers.connect(address(number), now).unwrap();
        let mut staying: Vec<Place> =
            (0..4).flat_map(|number| [number; 16]).map(|n| connect(n).stay_stranger().unwrap()).collect();
        for number in [0, 4] {
            assert_eq!(connect(number).stay_stranger().err(), Some(TooMany::Strangers), "{number}");
        }
        staying.truncate(15);
        connect(0).stay_stranger().unwrap();
        drop(staying);
        let taken = strangers.taken();
        assert!(taken.each.values().chain([&taken.all]).all(|share| share.handshakes + share.strangers == 0));
    }

    #[tokio::test]
    async fn an_address_connects_only_so_often_a_minute() {
        let (strangers, now) = (Arc::new(Strangers::default()), Instant::now());
        for _ in 0..MAX_CONNECTIONS {
            drop(strangers.connect(address(1), now).unwrap());
        }
        assert_eq!(strangers.connect(address(1), now).err(), Some(TooMany::Connections));
        assert!(strangers.connect(address(2), now).is_ok());
        assert!(strangers.connect(address(1), now + MINUTE).is_ok());
    }

    #[tokio::test]
    async fn tries_that_fail_are_limited_of_one_address_and_of_all() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        for _ in 0..100 {
            assert_eq!(strangers.try_join(address(0), now), Ok(()));
            strangers.forgive(address(0), now);
        }
        for number in 0..10 {
            for _ in 0..20 {
                assert_eq!(strangers.try_join(address(number), now), Ok(()));
            }
            assert_eq!(strangers.try_join(address(number), now), Err(TooMany::Tries), "{number}");
        }
        assert_eq!(strangers.try_join(address(10), now), Err(TooMany::Tries));
        assert_eq!(strangers.try_join(address(0), now + MINUTE), Ok(()));
    }

    #[tokio::test]
    async fn what_is_remembered_of_addresses_is_bounded() {
        let (strangers, now) = (Arc::new(Strangers::default()), Instant::now());
        for number in 0..17_000 {
            drop(strangers.connect(address(number), now));
        }
        assert_eq!(strangers.taken().each.len(), MAX_ADDRESSES + 1, "and those that are taken for one");
        assert!(strangers.connect(address(30_000), now + MINUTE).is_ok());
        assert_eq!(strangers.taken().each.len(), 1, "those of whom nothing counts any more are forgotten");
    }

    #[test]
    fn addresses_of_one_customer_are_one() {
        let origin = |text: &str| origin_of(text.parse().unwrap());
        assert_eq!(origin("2001:db8::1"), origin("2001:db8::ffff:0:0:1"));
        assert_ne!(origin("2001:db8::1"), origin("2001:db8:0:1::1"));
        assert_eq!(origin("::ffff:10.0.0.1"), origin("10.0.0.1"));
        assert_ne!(origin("10.0.0.1"), origin("10.0.0.2"));
    }
}
