//! Whom to tell that what they have to do has changed: the nodes that are no servers and follow this one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use blixard_core::types::{NodeId, RaftId};
use tokio::sync::watch;

/// Without a leader for this long a server tells nobody what to do: it may be cut off from the others. No election that
/// succeeds takes as long.
pub(super) const LEADERLESS: Duration = Duration::from_secs(3);

/// One number a node that grows with every change; all clones are the same.
#[derive(Clone, Default)]
pub(super) struct Followers(Arc<Mutex<BTreeMap<NodeId, watch::Sender<u64>>>>);

impl Followers {
    /// What changes whenever `node` is to look again.
    pub fn watch(&self, node: NodeId) -> watch::Receiver<u64> {
        let mut followers = self.lock();
        followers.retain(|_, follower| !follower.is_closed());
        followers.entry(node).or_default().subscribe()
    }

    pub fn tell(&self, nodes: &BTreeSet<NodeId>) {
        if !nodes.is_empty() {
            let followers = self.lock();
            nodes.iter().filter_map(|node| followers.get(node)).for_each(tell);
        }
    }

    /// Who is a member, or a server, has changed: that is everybody's.
    pub fn tell_all(&self) {
        self.lock().values().for_each(tell);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, watch::Sender<u64>>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

/// Returns once no leader has been known for so long.
pub(super) async fn is_leaderless(mut leaders: watch::Receiver<Option<RaftId>>, time: Duration) {
    loop {
        // Who told of leaders is gone where it ends.
        let is_gone = leaders.wait_for(Option::is_none).await.is_err();
        let is_back = tokio::time::timeout(time, leaders.wait_for(Option::is_some)).await;
        if is_gone || !matches!(is_back, Ok(Ok(_))) {
            return;
        }
    }
}

fn tell(follower: &watch::Sender<u64>) {
    follower.send_modify(|changes| *changes += 1);
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[test]
    fn who_is_not_concerned_is_not_woken_and_who_has_gone_is_forgotten() {
        let followers = Followers::default();
        let [mut one, mut other] = [1, 2].map(|node| followers.watch(NodeId(node)));
        followers.tell(&BTreeSet::from([NodeId(1), NodeId(3)]));
        assert!(one.has_changed().unwrap() && !other.has_changed().unwrap());
        followers.tell_all();
        assert!(other.has_changed().unwrap());
        let again = followers.watch(NodeId(1));
        one.mark_unchanged();
        other.mark_unchanged();
        followers.tell(&BTreeSet::from([NodeId(1)]));
        assert!(one.has_changed().unwrap() && again.has_changed().unwrap(), "both streams of one node");
        drop((one, again));
        let _ = followers.watch(NodeId(4));
        assert_eq!(followers.lock().keys().copied().collect::<Vec<_>>(), [NodeId(2), NodeId(4)]);
    }

    #[tokio::test]
    async fn a_server_is_leaderless_only_where_none_is_known_for_long() {
        let leaders = watch::Sender::new(Some(RaftId(1)));
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(3600));
        let mut patient = Box::pin(is_leaderless(leaders.subscribe(), long));
        let mut impatient = Box::pin(is_leaderless(leaders.subscribe(), short));
        let mut is_patient = || (&mut patient).now_or_never().is_none();
        assert!(is_patient() && (&mut impatient).now_or_never().is_none(), "there is one");
        leaders.send_replace(None);
        assert!(is_patient());
        impatient.await;
        leaders.send_replace(Some(RaftId(2)));
        assert!(is_patient(), "an election is no loss");
        drop(leaders);
        assert!(!is_patient(), "who told of them is gone");
    }
}
