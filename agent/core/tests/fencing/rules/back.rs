//! What goes down, or comes back: nothing of an earlier life runs on, or runs again.

use super::*;

#[test]
fn a_host_that_comes_back_starts_nothing_before_it_knows_what_is_its_own_now() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        let [server, _] = followers(&world);
        open(&mut world, server);
        move_to(&mut world, server);
        cordon(&mut world, server);
        world.power_off(server, None);
        // Its lease is over.
        world.run_for(12 * SECOND);
        say(&mut world, Command::ConfirmDead { node: NodeId(server.0), abandon_volumes: false });
        world.until("start elsewhere", |world| world.alive(&web()).len() == 1);
        let elsewhere = world.alive(&web());
        // All that it has is its own log, of before.
        world.isolate(server);
        world.wake(server);
        world.run_for(5 * SECOND);
        world.network.cut.clear();
        world.run_for(5 * SECOND);
        assert_eq!(world.alive(&web()), elsewhere);
    };
    is_kept(history, Mutation::ActsOnWhatIsOld, &[TWICE]);
}

#[test]
fn an_epoch_is_good_for_the_fence_alone_that_it_was_raised_for() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let disk = world.hosts[&HERE].disk.clone();
        world.install(HostId(104), NodeId(HERE.0), disk);
        // That there is another boot has ended the lease of the first one: either may arm now, and not by the epoch of before.
        world.run_for(15 * SECOND);
        assert_eq!(world.alive(&web()).len(), 1);
    };
    is_kept(history, Mutation::ResumesEpochs, &[TWICE]);
}

#[test]
fn what_ran_in_an_epoch_ends_with_the_fence_of_that_epoch() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        world.kill_fence(HERE);
        takes_over(&mut world);
        world.network.cut.clear();
        world.run_for(10 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::SparesWhatRuns, &[TWICE]);
}

#[test]
fn the_fence_of_a_host_that_goes_down_sees_to_it_that_nothing_runs() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        cordon(&mut world, HERE);
        let now = world.now;
        world.host(HERE).stuck_until = now + 60 * SECOND;
        world.shut_down(HERE, 30 * SECOND);
        takes_over(&mut world);
        assert!(world.facts.resets > 0, "its watchdog has reset the host");
        world.run_for(40 * SECOND);
        assert_eq!(world.alive(&web()), [THERE], "and when it is back it starts nothing");
    };
    is_kept(history, Mutation::EndsBeforeItIsEmpty, &[TWICE]);
}

#[test]
fn what_a_host_runs_that_is_to_go_down_has_stopped_there_before_it_starts_elsewhere() {
    let history = |seed, mutation| {
        for failover in [Failover::Automatic, Failover::Manual] {
            let mut world = running(seed, failover, mutation);
            world.reboot(HERE, 20 * SECOND);
            takes_over(&mut world);
            world.until("end", |world| !world.hosts[&HERE].is_on);
            assert_eq!(world.facts.emptied, 1, "it waited until it was empty");
        }
    };
    is_kept(history, Mutation::FreesWhatIsToGoDown, &[TWICE]);
}

#[test]
fn a_host_that_goes_down_without_a_quorum_stops_at_once_what_is_its_own_still_when_it_is_back() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        world.isolate(HERE);
        world.reboot(HERE, 10 * SECOND);
        world.until("end", |world| !world.hosts[&HERE].is_on);
        assert_eq!(world.facts.stopped, 1);
        // It knows of no other place.
        world.until("boot", |world| world.hosts[&HERE].is_on);
        world.run_for(5 * SECOND);
        assert_eq!(world.alive(&web()), []);
        world.network.cut.clear();
        world.until("start", |world| world.alive(&web()) == [HERE]);
    };
    is_kept(history, Mutation::FreesAtBoot, &[TWICE, "no start"]);
}

#[test]
fn a_host_that_boots_while_it_is_said_to_be_dead_is_not_or_starts_nothing() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        cordon(&mut world, HERE);
        world.power_off(HERE, None);
        // Its lease is over.
        world.run_for(12 * SECOND);
        world.wake(HERE);
        world.until("agent", |world| world.hosts[&HERE].agent.is_some());
        world.run_for(5 * MILLISECOND * (seed % 8));
        let leader = world.leader().expect("somebody leads");
        world.propose(leader, Command::ConfirmDead { node: NodeId(HERE.0), abandon_volumes: false });
        world.run_for(5 * SECOND);
        assert_eq!(world.alive(&web()).len(), 1);
    };
    is_kept(history, Mutation::ActsUnregistered, &[TWICE]);
}

#[test]
fn that_a_host_has_booted_does_not_say_that_what_it_ran_has_ended() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.isolate(HERE);
        // It isn't the one that runs the instance.
        let disk = world.hosts[&HERE].disk.clone();
        world.install(HostId(104), NodeId(HERE.0), disk);
        world.until("takeover", |world| !matches!(world.alive(&web())[..], [HERE] | []));
    };
    is_kept(history, Mutation::FreesAtBoot, &[TWICE]);
}

#[test]
fn what_a_host_ran_that_has_booted_and_does_not_arm_starts_elsewhere() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        world.power_off(HERE, Some(SECOND));
        world.until("fence", |world| world.hosts[&HERE].fence.is_some());
        world.pause_fence(HERE, 200 * SECOND);
        takes_over(&mut world);
    };
    is_kept(history, Mutation::SparesWhoHasBooted, &["no takeover"]);
}

#[test]
fn an_agent_that_starts_stops_nothing_that_rightly_runs() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Automatic, mutation);
        let stops = world.facts.stops;
        for _ in 0..4 {
            world.crash_agent(HERE, Some(2 * SECOND));
            world.run_for(6 * SECOND);
        }
        assert_eq!((world.alive(&web()), world.facts.stops), (vec![HERE], stops));
    };
    is_kept(history, Mutation::ActsOnWhatIsOld, &["which is placed there"]);
}
