//! Servers compare their states, and one whose state is another one stops.

use blixard::agent::Traits;
use redb::{Database, ReadableTable as _, TableDefinition};

use super::support::{Host, manifest};
use super::{apply, cluster, sees_running, start};

/// Hosts whose servers compare their states every second.
fn watchful() -> [Host; 3] {
    let traits = Traits { check_ticks: 100, ..Traits::default() };
    Host::blank(["alpha", "beta", "gamma"]).map(|host| Host { traits: traits.clone(), ..host })
}

/// Another number of the last task than the log's entries have made, in a store that is whole otherwise.
fn alter(host: &Host) {
    let counters = TableDefinition::<&[u8], &[u8]>::new("counters");
    let database = Database::open(host.dir.path().join("data/raft/state.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(counters).unwrap();
        let mut row = table.get([].as_slice()).unwrap().expect("there is one").value().to_vec();
        row[2] = 7;
        table.insert([].as_slice(), row.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_with_the_same_log_have_the_same_state() {
    let hosts = watchful();
    let agents = start(&hosts).await;
    let mut checked_at = 0;
    for name in ["a", "b", "c"] {
        apply(&agents[1], manifest(&[(name, "")])).await.unwrap();
        sees_running(&agents[0], 1).await;
        let equal = |status: &_| cluster(status).checked_at > checked_at && cluster(status).checked_equal == 3;
        checked_at = cluster(&agents[2].sees("another comparison", equal).await).checked_at;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_state_is_another_one_stops_and_the_others_go_on() {
    let hosts = watchful();
    let [alpha, beta, gamma] = start(&hosts).await;
    apply(&alpha, manifest(&[("web", "")])).await.unwrap();
    sees_running(&alpha, 1).await;
    gamma.stop().await;
    alter(&hosts[2]);
    for _ in 0..2 {
        // At once when it starts again, since the log says so.
        let stopped = hosts[2].start().ended().await.unwrap_err();
        for part in ["that of 2 other server(s)", "move the data directory away, start the agent"] {
            assert!(stopped.contains(part), "{stopped}");
        }
    }
    let told = |status: &blixard::api::proto::StatusReply| {
        status.problems.iter().any(|problem| problem.contains("gamma has stopped: its state after log entry"))
    };
    beta.sees("what is wrong with gamma", told).await;
    // Until it is known to be down, it may still be given something.
    alpha.sees("that gamma is down", |status| !super::node(status, "gamma").alive).await;
    apply(&alpha, manifest(&[("other", "")])).await.unwrap();
    beta.sees("the next VM", |status| super::instance(status, "other-0").is_some_and(|vm| vm.state == "running")).await;
}
