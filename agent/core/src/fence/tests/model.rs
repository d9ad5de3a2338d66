//! What anybody may ask a fence, in any order, and what must hold whatever it answers.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Ask(Request),
    Pass(u64),
    Look(bool),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let epoch = || (0..4_u64).prop_map(NodeEpoch);
    let generation = || (1..4_u64).prop_map(Generation);
    let event = prop_oneof![
        (0..4_u8, epoch()).prop_map(|(n, epoch)| Event::Ask(Request::Arm {
            nonce: Nonce([n; 16]),
            epoch,
            terms: FAST
        })),
        (epoch(), 0..20_000_u64).prop_map(|(epoch, ms)| Event::Ask(Request::Renewed { epoch, sent: at(ms) })),
        (epoch(), generation())
            .prop_map(|(epoch, generation)| { Event::Ask(Request::Allow { epoch, instance: web(), generation }) }),
        generation().prop_map(|generation| Event::Ask(Request::Start { instance: web(), generation })),
        generation().prop_map(|generation| Event::Ask(Request::Stop { instance: web(), generation })),
        (0..2_000_u64).prop_map(Event::Pass),
        any::<bool>().prop_map(Event::Look),
    ];
    proptest::collection::vec(event, 1..60)
}

proptest! {
    /// Whatever it is asked, and in whichever order: what it lets start has a lease from then, a placement in that epoch,
    /// no stop; and once the lease is over, nothing that ran is left before it can be armed again.
    #[test]
    fn whatever_is_asked_nothing_starts_that_may_run_elsewhere(events in events()) {
        let mut fence = Fence::default();
        let (mut now, mut draws, mut runs) = (0, 0, false);
        let (mut lease_until, mut placed, mut buried) = (0, None, Generation(0));
        for event in events {
            match event {
                Event::Pass(ms) => now += ms,
                Event::Look(is_empty) => {
                    runs &= !is_empty;
                    if fence.tick(at(now), !runs).action == Action::Draw {
                        prop_assert!(!runs, "a nonce says that nothing runs");
                        fence.ready(Ok(Nonce([draws; 16])));
                        draws += 1;
                    }
                }
                Event::Ask(request) => {
                    let group = if runs { Group::Populated } else { Group::Empty };
                    let starts = matches!(request, Request::Start { .. });
                    let done = fence.handle(at(now), &request, |_| if starts { Group::Asking } else { group });
                    if let (Request::Stop { generation, .. }, Reply::Refused(Refusal::Runs)) = (&request, &done) {
                        prop_assert!(runs);
                        buried = buried.max(*generation);
                    }
                    if done != Reply::Done {
                        continue;
                    }
                    match request {
                        Request::Arm { .. } => {
                            prop_assert!(!runs, "armed with something of an epoch that is over");
                            (lease_until, placed) = (0, None);
                        }
                        Request::Renewed { sent, .. } => {
                            prop_assert!(lease_until == 0 || now < lease_until, "renewed after its end");
                            prop_assert!(sent <= at(now));
                            lease_until = lease_until.max(sent.0 / 1_000_000 + 5_000);
                        }
                        Request::Allow { generation, .. } => {
                            prop_assert!(generation > buried);
                            placed = Some(generation);
                        }
                        Request::Start { generation, .. } => {
                            prop_assert!(now + 1_000 < lease_until);
                            prop_assert!(Some(generation) == placed && generation > buried);
                            runs = true;
                        }
                        Request::Stop { generation, .. } => {
                            prop_assert!(!runs);
                            buried = buried.max(generation);
                        }
                        Request::Status | Request::End => {}
                    }
                }
            }
        }
    }
}
