use super::*;

mod model;

const FIRST: Nonce = Nonce([1; 16]);
const SECOND: Nonce = Nonce([2; 16]);
const FAST: LeaseTerms = LeaseTerms::FAST;

fn at(ms: u64) -> BootTime {
    BootTime(ms * 1_000_000)
}

fn web() -> InstanceId {
    "web-0".parse().unwrap()
}

fn instance(number: usize) -> InstanceId {
    format!("web{number}-0").parse().unwrap()
}

/// A fence whose slice is empty unless a test says otherwise, asked from within the unit that is to start.
struct Host {
    fence: Fence,
    group: Group,
}

impl Host {
    /// One that has seen nothing, twice, and drawn a nonce.
    fn idle() -> Self {
        let mut host = Self { fence: Fence::default(), group: Group::Empty };
        host.clear(0, FIRST);
        host
    }

    /// One that is armed with epoch 1 and holds a lease that ends at 5 s.
    fn leased() -> Self {
        let mut host = Self::idle();
        assert_eq!(host.arm(0, FIRST, 1), Reply::Done);
        assert_eq!(host.renewed(0, 1, 0), Reply::Done);
        host
    }

    /// One whose web-0 may start, by generation 3.
    fn placed() -> Self {
        let mut host = Self::leased();
        assert_eq!(host.allow(0, 1, 3), Reply::Done);
        host
    }

    fn clear(&mut self, ms: u64, nonce: Nonce) {
        assert_eq!(self.turn(ms, true), Action::Wait, "it looks twice");
        assert_eq!(self.turn(ms, true), Action::Draw);
        self.fence.ready(Ok(nonce));
    }

    fn turn(&mut self, ms: u64, is_empty: bool) -> Action {
        self.fence.tick(at(ms), is_empty).action
    }

    fn ask(&mut self, ms: u64, request: &Request) -> Reply {
        let group = self.group;
        self.fence.handle(at(ms), request, |_| group)
    }

    fn arm(&mut self, ms: u64, nonce: Nonce, epoch: u64) -> Reply {
        self.ask(ms, &Request::Arm { nonce, epoch: NodeEpoch(epoch), terms: FAST })
    }

    fn renewed(&mut self, ms: u64, epoch: u64, sent: u64) -> Reply {
        self.ask(ms, &Request::Renewed { epoch: NodeEpoch(epoch), sent: at(sent) })
    }

    fn allow(&mut self, ms: u64, epoch: u64, generation: u64) -> Reply {
        let (epoch, generation) = (NodeEpoch(epoch), Generation(generation));
        self.ask(ms, &Request::Allow { epoch, instance: web(), generation })
    }

    fn start(&mut self, ms: u64, generation: u64) -> Reply {
        self.group = Group::Asking;
        self.ask(ms, &Request::Start { instance: web(), generation: Generation(generation) })
    }

    fn stop(&mut self, ms: u64, generation: u64, group: Group) -> Reply {
        self.group = group;
        self.ask(ms, &Request::Stop { instance: web(), generation: Generation(generation) })
    }

    fn stage(&self) -> Stage {
        self.fence.status().stage
    }

    fn deadline(&self) -> Option<BootTime> {
        match self.stage() {
            Stage::Armed { deadline, .. } => deadline,
            _ => None,
        }
    }
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}

// Rule 1: arm.

#[test]
fn it_kills_whatever_it_finds_until_it_has_seen_nothing_twice() {
    let mut host = Host { fence: Fence::default(), group: Group::Empty };
    assert_eq!(host.turn(0, false), Action::Kill);
    assert_eq!(host.turn(10, false), Action::Kill);
    assert_eq!(host.turn(20, true), Action::Wait);
    assert_eq!(host.turn(30, false), Action::Kill, "something came after the first look");
    assert_eq!(host.turn(40, true), Action::Wait);
    assert_eq!(host.stage(), Stage::Clearing);
    assert_eq!(host.turn(50, true), Action::Draw);
    host.fence.ready(Ok(FIRST));
    assert_eq!(host.stage(), Stage::Idle { nonce: FIRST });
}

#[test]
fn only_the_nonce_that_was_drawn_last_arms_it_and_only_once() {
    let mut host = Host { fence: Fence::default(), group: Group::Empty };
    assert_eq!(host.arm(0, FIRST, 1), refused(Refusal::Nonce), "nothing was drawn yet");
    host.clear(0, FIRST);
    assert_eq!(host.arm(0, SECOND, 1), refused(Refusal::Nonce));
    assert_eq!(host.arm(0, FIRST, 1), Reply::Done);
    assert_eq!(host.arm(0, FIRST, 2), refused(Refusal::Nonce), "a repeated arm");
}

#[test]
fn a_delayed_arm_with_the_nonce_of_an_epoch_that_is_over_is_refused() {
    let mut host = Host::leased();
    assert_eq!(host.turn(5_000, true), Action::Wait);
    assert_eq!(host.turn(5_010, true), Action::Draw);
    host.fence.ready(Ok(SECOND));
    assert_eq!(host.arm(5_020, FIRST, 2), refused(Refusal::Nonce));
    assert_eq!(host.stage(), Stage::Idle { nonce: SECOND });
}

#[test]
fn what_was_allowed_is_forgotten_with_its_epoch() {
    let mut host = Host::placed();
    host.clear(5_000, SECOND);
    assert_eq!(host.arm(5_000, SECOND, 2), Reply::Done);
    assert_eq!(host.renewed(5_000, 2, 5_000), Reply::Done);
    assert_eq!(host.fence.status().allowed, BTreeMap::new());
    let not_allowed = Refusal::NotAllowed { asked: Generation(3), allowed: None };
    assert_eq!(host.start(5_000, 3), refused(not_allowed));
}

#[test]
fn what_lacks_something_is_not_armed_until_that_is_there() {
    let mut host = Host { fence: Fence::default(), group: Group::Empty };
    host.turn(0, true);
    assert_eq!(host.turn(0, true), Action::Draw);
    let unable = Unable::Watchdog { device: "/dev/watchdog".into(), reason: "it isn't there".into() };
    host.fence.ready(Err(unable.clone()));
    assert_eq!(host.arm(0, FIRST, 1), refused(unable.clone().into()));
    assert_eq!(host.start(0, 3), refused(unable.clone().into()));
    assert_eq!(host.stage(), Stage::Unable(unable));
    assert_eq!(host.turn(1_000, false), Action::Wait, "a nonce says that nothing runs");
    assert_eq!(host.turn(2_000, true), Action::Draw);
    host.fence.ready(Ok(FIRST));
    assert_eq!(host.arm(2_000, FIRST, 1), Reply::Done);
}

#[test]
fn watchdogs_that_do_not_take_the_terms_take_the_arming_back() {
    let mut host = Host::idle();
    assert_eq!(host.arm(0, FIRST, 1), Reply::Done);
    let unable = Unable::Watchdog { device: "/dev/watchdog".into(), reason: "not in 2 s".into() };
    host.fence.ready(Err(unable.clone()));
    assert_eq!(host.renewed(0, 1, 0), refused(unable.clone().into()));
    assert_eq!(host.stage(), Stage::Unable(unable));
}

#[test]
#[should_panic(expected = "clears first")]
fn a_fence_that_may_have_let_something_start_draws_no_nonce() {
    Host::leased().fence.ready(Ok(SECOND));
}

// Rule 2, this host's part: renew.

#[test]
fn a_lease_counts_from_when_its_renewal_was_sent_and_never_shrinks() {
    let mut host = Host::idle();
    host.arm(0, FIRST, 1);
    assert_eq!(host.deadline(), None);
    assert_eq!(host.renewed(900, 1, 100), Reply::Done);
    assert_eq!(host.deadline(), Some(at(5_100)));
    assert_eq!(host.renewed(2_500, 1, 2_000), Reply::Done);
    assert_eq!(host.renewed(2_600, 1, 1_000), Reply::Done, "overtaken by a later one");
    assert_eq!(host.deadline(), Some(at(7_000)));
}

#[test]
fn a_renewal_that_was_sent_in_the_future_is_refused() {
    let mut host = Host::leased();
    assert_eq!(host.renewed(1_000, 1, 1_001), refused(Refusal::Future));
    assert_eq!(host.deadline(), Some(at(5_000)));
}

#[test]
fn a_renewal_that_arrives_when_the_lease_is_over_is_ignored() {
    let mut host = Host::leased();
    assert_eq!(host.renewed(4_999, 1, 2_000), Reply::Done);
    assert_eq!(host.renewed(7_000, 1, 6_500), refused(Refusal::NotArmed));
    assert_eq!(host.stage(), Stage::Clearing);
    host.clear(8_000, SECOND);
    host.arm(8_000, SECOND, 2);
    assert_eq!(host.renewed(11_500, 2, 6_500), refused(Refusal::Late), "the first one, too");
    assert_eq!(host.deadline(), None);
}

#[test]
fn a_renewal_of_another_epoch_is_refused() {
    let mut host = Host::leased();
    for epoch in [0, 2] {
        let refusal = Refusal::Epoch { armed: NodeEpoch(1), asked: NodeEpoch(epoch) };
        assert_eq!(host.renewed(100, epoch, 100), refused(refusal));
    }
    assert_eq!(host.deadline(), Some(at(5_000)));
}

#[test]
fn one_that_is_never_renewed_is_to_be_armed_anew() {
    let mut host = Host::idle();
    assert_eq!(host.arm(1_000, FIRST, 1), Reply::Done);
    assert_eq!(host.turn(5_999, true), Action::Wait);
    assert_eq!(host.fence.tick(at(5_900), true).wake, at(6_000));
    assert_eq!(host.renewed(6_000, 1, 5_900), refused(Refusal::NotArmed));
    assert_eq!(host.stage(), Stage::Clearing);
    host.clear(6_000, SECOND);
    assert_eq!(host.arm(6_000, SECOND, 2), Reply::Done);
}

// Rule 3: start.

#[test]
fn what_is_placed_starts_and_starts_again_while_the_lease_holds() {
    let mut host = Host::placed();
    assert_eq!(host.start(0, 3), Reply::Done);
    assert_eq!(host.start(3_999, 3), Reply::Done);
}

#[test]
fn nothing_starts_within_the_last_second_of_a_lease() {
    let mut host = Host::placed();
    assert_eq!(host.start(4_000, 3), refused(Refusal::Ending));
    assert_eq!(host.start(4_999, 3), refused(Refusal::Ending));
    assert_eq!(host.renewed(4_999, 1, 4_500), Reply::Done);
    assert_eq!(host.start(4_999, 3), Reply::Done);
}

#[test]
fn nothing_starts_without_a_lease() {
    let mut host = Host { fence: Fence::default(), group: Group::Empty };
    assert_eq!(host.start(0, 3), refused(Refusal::NotArmed), "while it clears");
    host.clear(0, FIRST);
    assert_eq!(host.start(0, 3), refused(Refusal::NotArmed), "before it is armed");
    host.arm(0, FIRST, 1);
    assert_eq!(host.allow(0, 1, 3), Reply::Done);
    assert_eq!(host.start(0, 3), refused(Refusal::Ending), "before it is renewed");
}

#[test]
fn only_the_generation_that_is_placed_starts() {
    let mut host = Host::placed();
    for generation in [2, 4] {
        let refusal = Refusal::NotAllowed { asked: Generation(generation), allowed: Some(Generation(3)) };
        assert_eq!(host.start(0, generation), refused(refusal));
    }
    assert_eq!(host.allow(0, 1, 4), Reply::Done);
    assert!(matches!(host.start(0, 3), Reply::Refused(Refusal::NotAllowed { .. })), "it was placed anew");
    assert!(matches!(host.allow(0, 1, 3), Reply::Refused(Refusal::NotAllowed { .. })), "an older placement");
    assert_eq!(host.start(0, 4), Reply::Done);
}

#[test]
fn an_allow_of_another_epoch_is_refused() {
    let mut host = Host::leased();
    host.clear(5_000, SECOND);
    assert_eq!(host.allow(5_000, 1, 3), refused(Refusal::NotArmed));
    host.arm(5_000, SECOND, 2);
    let refusal = Refusal::Epoch { armed: NodeEpoch(2), asked: NodeEpoch(1) };
    assert_eq!(host.allow(5_000, 1, 3), refused(refusal));
    assert_eq!(host.allow(5_000, 2, 3), Reply::Done);
}

#[test]
fn nobody_starts_an_instance_from_outside_the_group_that_will_be_killed() {
    let mut host = Host::placed();
    for group in [Group::Empty, Group::Populated] {
        host.group = group;
        let start = Request::Start { instance: web(), generation: Generation(3) };
        assert_eq!(host.ask(0, &start), refused(Refusal::Outside));
    }
}

// Rule 4: stop.

#[test]
fn what_was_stopped_for_good_never_starts_again() {
    let mut host = Host::placed();
    assert_eq!(host.stop(100, 3, Group::Empty), Reply::Done);
    let is_stopped = || refused(Refusal::IsStopped { stopped: Generation(3) });
    assert_eq!(host.start(100, 3), is_stopped(), "a start that was on its way");
    for generation in [2, 3] {
        assert_eq!(host.allow(100, 1, generation), is_stopped(), "a delayed allow");
    }
    host.clear(5_000, SECOND);
    host.arm(5_000, SECOND, 2);
    host.renewed(5_000, 2, 5_000);
    assert_eq!(host.allow(5_000, 2, 3), is_stopped(), "nor under another epoch");
    assert_eq!(host.allow(5_000, 2, 4), Reply::Done, "it was placed here again");
    assert_eq!(host.start(5_000, 4), Reply::Done);
}

#[test]
fn a_stop_is_confirmed_only_when_nothing_of_it_is_left() {
    let mut host = Host::placed();
    for group in [Group::Populated, Group::Asking] {
        assert_eq!(host.stop(100, 3, group), refused(Refusal::Runs));
    }
    let is_stopped = refused(Refusal::IsStopped { stopped: Generation(3) });
    assert_eq!(host.start(100, 3), is_stopped, "its unit may start it again as soon as its guest is off");
    assert_eq!(host.stop(100, 3, Group::Empty), Reply::Done);
    assert_eq!(host.stop(100, 3, Group::Empty), Reply::Done, "asked again");
}

#[test]
fn a_late_stop_of_an_older_generation_leaves_the_newer_one_alone() {
    let mut host = Host::placed();
    assert_eq!(host.stop(0, 2, Group::Empty), Reply::Done);
    assert_eq!(host.start(0, 3), Reply::Done);
    assert_eq!(host.stop(0, 3, Group::Empty), Reply::Done);
    assert_eq!(host.stop(0, 2, Group::Empty), Reply::Done);
    assert_eq!(host.start(0, 3), refused(Refusal::IsStopped { stopped: Generation(3) }));
}

#[test]
fn a_stop_is_confirmed_without_a_lease_too() {
    let mut host = Host::placed();
    assert_eq!(host.stop(5_000, 3, Group::Empty), Reply::Done);
    assert_eq!(host.stage(), Stage::Clearing);
}

// Rule 5: the deadline.

#[test]
fn at_the_deadline_everything_is_refused_and_killed() {
    let mut host = Host::placed();
    assert_eq!(host.turn(4_999, false), Action::Wait);
    assert_eq!(host.fence.tick(at(4_900), false).wake, at(5_000), "it wakes at the deadline, not after");
    assert_eq!(host.start(5_000, 3), refused(Refusal::NotArmed), "before anything was killed");
    assert_eq!(host.turn(5_000, false), Action::Kill);
    assert_eq!(host.fence.tick(at(5_010), false).wake, at(5_020), "it looks again soon");
}

#[test]
fn a_host_that_was_suspended_past_the_deadline_starts_nothing_and_kills_first() {
    let mut host = Host::placed();
    let turn = host.fence.tick(at(60_000), false);
    assert_eq!((turn.action, turn.pet), (Action::Kill, false), "it is too late for patience");
    let mut host = Host::placed();
    assert_eq!(host.renewed(60_000, 1, 59_900), refused(Refusal::NotArmed));
    assert_eq!(host.start(60_000, 3), refused(Refusal::NotArmed));
}

#[test]
fn the_host_is_reset_in_time_if_something_does_not_die() {
    for terms in [LeaseTerms::FAST, LeaseTerms::DEFAULT, LeaseTerms::RELAXED] {
        let mut fence = Fence::default();
        fence.tick(at(0), true);
        fence.tick(at(0), true);
        fence.ready(Ok(FIRST));
        let epoch = NodeEpoch(1);
        fence.handle(at(0), &Request::Arm { nonce: FIRST, epoch, terms }, |_| Group::Empty);
        fence.handle(at(0), &Request::Renewed { epoch, sent: at(0) }, |_| Group::Empty);
        let deadline = at(0).after(terms.lease());
        let mut now = deadline;
        let mut last_pet = None;
        while now < deadline.after(terms.kill()) {
            let turn = fence.tick(now, false);
            assert_eq!(turn.action, Action::Kill);
            last_pet = if turn.pet { Some(now) } else { last_pet };
            now = turn.wake;
        }
        let device = Duration::from_secs(terms.device_timeout_seconds().into());
        let reset = last_pet.expect("it has time to kill").after(device);
        assert!(reset < deadline.after(terms.kill()), "{terms}: {reset:?}");
        assert!(!fence.tick(now, true).pet, "seen empty once is not enough");
        assert!(fence.tick(now, true).pet);
    }
}

#[test]
fn a_fence_that_begins_pets_no_device_before_nothing_runs() {
    let mut host = Host { fence: Fence::default(), group: Group::Empty };
    assert!(!host.fence.tick(at(0), false).pet);
    assert!(!host.fence.tick(at(10), true).pet);
    assert!(host.fence.tick(at(20), true).pet);
}

#[test]
fn signs_of_life_come_three_times_as_often_as_they_must() {
    let mut host = Host::idle();
    assert_eq!(host.fence.tick(at(0), true).wake, at(200));
    host.arm(0, FIRST, 1);
    assert_eq!(host.fence.tick(at(0), true).wake, at(0).after(FAST.fence_watchdog() / 3));
    host.renewed(0, 1, 0);
    host.clear(5_000, SECOND);
    let wake = host.fence.tick(at(5_000), true).wake;
    assert_eq!(wake, at(5_000).after(FAST.fence_watchdog() / 3), "its watchdogs still count by the last terms");
}

#[test]
fn one_that_is_told_to_end_does_so_once_nothing_runs() {
    let mut host = Host::placed();
    assert_eq!(host.ask(100, &Request::End), Reply::Done);
    assert_eq!(host.start(100, 3), refused(Refusal::NotArmed));
    assert_eq!(host.turn(100, false), Action::Kill);
    assert_eq!(host.ask(105, &Request::End), Reply::Done, "asked again");
    assert_eq!(host.turn(110, true), Action::Wait);
    assert_eq!(host.turn(120, true), Action::End);
    for mut host in [Host::idle(), Host { fence: Fence::default(), group: Group::Empty }] {
        host.ask(0, &Request::End);
        assert_eq!(host.arm(0, FIRST, 1), refused(Refusal::Nonce));
        assert_eq!(host.turn(0, true), Action::Wait);
        assert_eq!(host.turn(0, true), Action::End);
    }
}

// Limits.

#[test]
fn nothing_is_allowed_whose_end_could_not_be_remembered() {
    let mut host = Host::leased();
    let ask = |host: &mut Host, request| host.fence.handle(at(0), &request, |_| Group::Empty);
    let generation = Generation(1);
    let allow = |number| Request::Allow { epoch: NodeEpoch(1), instance: instance(number), generation };
    let stop = |number| Request::Stop { instance: instance(number), generation };
    for number in 0..MAX_INSTANCES - 2 {
        assert_eq!(ask(&mut host, stop(number)), Reply::Done);
    }
    assert_eq!(ask(&mut host, allow(MAX_INSTANCES)), Reply::Done);
    assert_eq!(ask(&mut host, allow(MAX_INSTANCES + 1)), Reply::Done);
    assert_eq!(ask(&mut host, allow(MAX_INSTANCES + 2)), refused(Refusal::Full));
    assert_eq!(ask(&mut host, stop(MAX_INSTANCES + 2)), refused(Refusal::Full), "their places are kept");
    let again = Request::Allow { epoch: NodeEpoch(1), instance: instance(0), generation: Generation(2) };
    assert_eq!(ask(&mut host, again), Reply::Done, "it is remembered already");
    for number in [MAX_INSTANCES, MAX_INSTANCES + 1, 0] {
        assert_eq!(ask(&mut host, stop(number)), Reply::Done);
    }
}

#[test]
fn a_status_of_all_that_can_be_allowed_fits_into_a_packet() {
    let mut host = Host::leased();
    let longest = |number: usize| format!("{}{number:05}-65535", "a".repeat(52)).parse::<InstanceId>().unwrap();
    let allow =
        |number| Request::Allow { epoch: NodeEpoch(1), instance: longest(number), generation: Generation(u64::MAX) };
    for number in 0..MAX_ALLOWED {
        assert_eq!(host.ask(0, &allow(number)), Reply::Done);
    }
    assert_eq!(host.ask(0, &allow(MAX_ALLOWED)), refused(Refusal::Full));
    let packet = postcard::to_stdvec(&host.ask(0, &Request::Status)).unwrap();
    assert!(packet.len() < 128 * 1024, "{}", packet.len());
}

/// An agent, or a gate, may be newer than the fence that it asks.
#[test]
fn what_is_asked_and_answered_keeps_its_bytes() {
    let epoch = NodeEpoch(2);
    let (instance, generation) = (web(), Generation(3));
    let bytes = |request: &Request| postcard::to_stdvec(request).unwrap();
    assert_eq!(bytes(&Request::Status), [0]);
    let arm = bytes(&Request::Arm { nonce: FIRST, epoch, terms: FAST });
    assert_eq!(arm, [&[1][..], &[1; 16], &[2, 0x88, 0x27, 0xe8, 0x07, 0xb8, 0x17, 0xa8, 0x46]].concat());
    assert_eq!(bytes(&Request::Renewed { epoch, sent: BootTime(5) }), [2, 2, 5]);
    let named = |tag: &[u8]| [tag, &[5], b"web-0", &[3]].concat();
    assert_eq!(bytes(&Request::Allow { epoch, instance: instance.clone(), generation }), named(&[3, 2]));
    assert_eq!(bytes(&Request::Start { instance: instance.clone(), generation }), named(&[4]));
    assert_eq!(bytes(&Request::Stop { instance, generation }), named(&[5]));
    assert_eq!(bytes(&Request::End), [6]);
    let reply = |reply: &Reply| postcard::to_stdvec(reply).unwrap();
    assert_eq!(reply(&Reply::Done), [0]);
    assert_eq!(reply(&Host::placed().ask(0, &Request::Status))[..7], [1, 3, 1, 0x88, 0x27, 0xe8, 0x07]);
    assert_eq!(reply(&refused(Refusal::NotArmed)), [2, 0]);
    assert_eq!(reply(&refused(Refusal::Unknown)), [2, 11]);
}
