//! What comes back that the cluster has gone on without: an earlier disk, or a host that a person took for dead.

use super::*;

/// Nobody hears a host any more, and its lease is over.
fn falls_silent(world: &mut World, id: HostId) {
    world.isolate(id);
    world.run_for(12 * SECOND);
}

#[test]
fn an_earlier_disk_starts_nothing_that_has_moved_since() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        let [server, _] = followers(&world);
        open(&mut world, server);
        move_to(&mut world, server);
        let image = world.image(server);
        move_to(&mut world, THERE);
        world.power_off(server, Some(SECOND));
        world.host(server).disk = image;
        world.until("agent", |world| world.hosts[&server].agent.is_some());
        world.run_for(10 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::ActsOnWhatIsOld, &[TWICE]);
}

#[test]
fn a_server_with_an_earlier_disk_promises_nothing_once_a_leader_has_told_it_of_what_it_lacks() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        let (leader, [server, other]) = (world.leader().expect("somebody leads"), followers(&world));
        world.isolate(other);
        let image = world.image(server);
        move_to(&mut world, THERE);
        world.crash_agent(server, None);
        world.host(server).disk = image;
        world.wake(server);
        world.until("word of the leader", |world| world.facts.lost_logs > 0);
        // What is left has not acknowledged the move, and is no quorum.
        world.power_off(leader, None);
        world.network.cut.clear();
        world.crash_agent(HERE, Some(SECOND));
        world.run_for(20 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
        world.wake(leader);
        world.until("leader", |world| world.leader().is_some());
        world.run_for(5 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
    };
    is_kept(history, Mutation::ForgetsThatItsLogIsLost, &[TWICE]);
}

#[test]
fn what_a_host_runs_that_was_wrongly_said_to_be_dead_stops_as_soon_as_that_is_back() {
    let history = |seed, mutation| {
        let mut world = running(seed, Failover::Manual, mutation);
        falls_silent(&mut world, HERE);
        world.deny(HERE);
        say(&mut world, Command::ConfirmDead { node: NodeId(HERE.0), abandon_volumes: false });
        takes_over(&mut world);
        let runs = |world: &World| !world.hosts[&HERE].units.is_empty();
        match seed % 3 {
            0 => assert!(runs(&world), "a person was wrong"),
            1 => world.crash_agent(HERE, Some(SECOND)),
            _ => world.power_off(HERE, Some(SECOND)),
        }
        world.run_for(5 * SECOND);
        world.network.cut.clear();
        world.until("end of what nobody wants there", |world| !runs(world));
        world.run_for(10 * SECOND);
        assert_eq!(world.alive(&web()), [THERE]);
        // It is used again.
        move_to(&mut world, HERE);
    };
    is_kept(history, Mutation::SparesStrays, &["no end of what nobody wants there"]);
}
