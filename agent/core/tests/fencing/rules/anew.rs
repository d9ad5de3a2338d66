//! After a cluster has begun anew: what its members of before run is theirs until each of them is back, or dead.

use super::*;

/// A server that nobody hears: the others go on without it, and a person takes them for lost.
fn cut_off(world: &mut World) -> HostId {
    let [survivor, _] = followers(world);
    world.isolate(survivor);
    survivor
}

/// Everybody hears everybody, and who isn't a member of the newest cluster is to be.
fn all_rejoin(world: &mut World) {
    world.network.cut.clear();
    let others: Vec<HostId> =
        world.hosts.values().filter(|host| !host.is_retired && !world.is_member(host)).map(|host| host.id).collect();
    for id in others {
        world.rejoin(id);
    }
}

/// The cluster is whole again, and runs what is declared.
fn goes_on(world: &mut World) {
    world.until("return", |world| world.truth.absent().is_empty());
    world.until("start in the new cluster", |world| world.all_are_armed() && world.is_settled());
}

#[test]
fn nothing_starts_in_a_cluster_that_began_anew_that_may_run_under_a_lease_of_before() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let [survivor, _] = followers(&world);
        open(&mut world, survivor);
        move_to(&mut world, survivor);
        world.isolate(survivor);
        world.until("takeover", |world| matches!(world.alive(&web())[..], [HERE | THERE]));
        let holder = world.alive(&web())[0];
        world.recover(survivor);
        world.run_for(20 * SECOND);
        assert_eq!(world.alive(&web()), [holder], "those whom it cannot hear go on");
        for closed in [survivor, if holder == HERE { THERE } else { HERE }] {
            cordon(&mut world, closed);
        }
        let (gone, node) = (HostId(6), NodeId(6));
        world.retire(gone);
        say(&mut world, Command::RemoveNode { node, dead: true, abandon_volumes: false });
        all_rejoin(&mut world);
        goes_on(&mut world);
    };
    is_kept(history, Mutation::ForgetsTheAbsent, &[TWICE]);
}

#[test]
fn what_runs_as_something_else_than_it_is_placed_as_is_stopped_before_its_node_is_back() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let survivor = cut_off(&mut world);
        world.declared.vm("web", 1, Failover::Manual);
        let declared = world.declared.command();
        say(&mut world, declared);
        move_to(&mut world, THERE);
        move_to(&mut world, HERE);
        world.recover(survivor);
        cordon(&mut world, HERE);
        all_rejoin(&mut world);
        goes_on(&mut world);
    };
    is_kept(history, Mutation::TakesEitherTemplate, &[TWICE]);
}

#[test]
fn who_comes_back_arms_anew_whatever_it_was_armed_with() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let long = LeaseTerms::new(30_000, 1_000, 3_000, 36_000).expect("they fit");
        cordon(&mut world, THERE);
        declare_lease(&mut world, long);
        let before = world.back_up(world.leader().expect("somebody leads"));
        declare_lease(&mut world, LeaseTerms::FAST);
        let epoch = world.truth.nodes()[&NodeId(HERE.0)].lease.epoch.next();
        world.kill_fence(HERE);
        let is_armed = |world: &World| world.truth.nodes()[&NodeId(HERE.0)].lease.epoch == epoch;
        world.until("arming", is_armed);
        world.until("start", World::is_settled);
        let after = world.back_up(world.leader().expect("somebody leads"));

        // What followed the first backup is another history: in it the host arms for longer, by an epoch of the same number.
        world.restore(HostId(108), &before);
        all_rejoin(&mut world);
        goes_on(&mut world);
        assert!(is_armed(&world));
        // It is given up for the one of the second backup.
        world.retire(HostId(108));
        world.restore(HostId(109), &after);
        all_rejoin(&mut world);
        world.until("return", |world| world.truth.absent().is_empty());
        world.until("start", |world| world.all_are_armed() && world.alive(&web()) == [HERE]);
        open(&mut world, THERE);
        world.isolate(HERE);
        takes_over(&mut world);
    };
    is_kept(history, Mutation::ArmsNobodyAnew, &[TWICE]);
}

fn declare_lease(world: &mut World, lease: LeaseTerms) {
    world.declared.lease = lease;
    let declared = world.declared.command();
    say(world, declared);
}
