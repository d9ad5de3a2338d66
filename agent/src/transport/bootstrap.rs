//! What a blank node does after it asked all listed servers: join, found a cluster, or ask again.

use blixard_core::types::{ClusterId, Server};

use super::join::Answer;
use crate::error_chain;

/// What a blank node does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Become a member by way of one of these, tried in this order.
    Join(Vec<Server>),
    /// Make a new cluster: no other node that lists the same servers ever comes to this.
    Found,
    /// Ask again later; the text says what is missing.
    Wait(String),
}

/// The listed servers are of more than one cluster, so none can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cannot join: {} is in cluster {} and {} is in cluster {}; cluster.servers must list the servers of one cluster",
    one.0, one.1, other.0, other.1
)]
pub struct TwoClusters {
    pub one: Box<(Server, ClusterId)>,
    pub other: Box<(Server, ClusterId)>,
}

/// What follows from the answers of all listed servers, in the list's order, [`Answer::Own`] among them.
///
/// Whoever knows the cluster is joined. A cluster is founded only by the first of the list, fixed and not the first that
/// can be reached, and only when it and other blank servers are a majority of the list: so a host that was reinstalled
/// while others are away never founds a second one.
///
/// # Errors
/// [`TwoClusters`] if two servers are in different clusters: a person must correct the list.
pub fn decide(answers: &[(Server, Answer)]) -> Result<Decision, TwoClusters> {
    let members: Vec<(&Server, ClusterId)> = answers
        .iter()
        .filter_map(|(server, answer)| match answer {
            Answer::Member(cluster) => Some((server, *cluster)),
            _ => None,
        })
        .collect();
    if let [one, rest @ ..] = members.as_slice() {
        if let Some(other) = rest.iter().find(|other| other.1 != one.1) {
            let owned = |(server, cluster): (&Server, ClusterId)| Box::new((server.clone(), cluster));
            return Err(TwoClusters { one: owned(*one), other: owned(*other) });
        }
        return Ok(Decision::Join(members.into_iter().map(|(server, _)| server.clone()).collect()));
    }

    let blank = answers.iter().filter(|(_, answer)| matches!(answer, Answer::Own | Answer::Blank)).count();
    let missing: Vec<String> = answers
        .iter()
        .filter_map(|(server, answer)| match answer {
            Answer::Failed(error) => Some(format!("{}: {}", server.name, error_chain(error))),
            _ => None,
        })
        .collect();
    let missing = if missing.is_empty() { String::new() } else { format!("; missing: {}", missing.join("; ")) };
    Ok(match answers.first() {
        Some((_, Answer::Own)) if blank > answers.len() / 2 => Decision::Found,
        Some((first, Answer::Own | Answer::Blank)) if blank > answers.len() / 2 => {
            Decision::Wait(format!("{}, first in cluster.servers, is to found the cluster{missing}", first.name))
        }
        Some((first, Answer::Failed(_))) if blank > answers.len() / 2 => Decision::Wait(format!(
            "{} is first in cluster.servers, so only it may found the cluster, and it can't be asked{missing}",
            first.name
        )),
        _ => Decision::Wait(format!(
            "{blank} of {} servers are there and new, and a cluster is founded by more than half of them{missing}",
            answers.len()
        )),
    })
}

#[cfg(test)]
mod tests {
    use super::super::AskError;
    use super::*;

    const NAMES: [&str; 5] = ["alpha", "beta", "gamma", "delta", "epsilon"];

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Seen {
        Blank,
        One,
        Two,
        Away,
    }

    fn server(at: usize) -> Server {
        format!("{}@192.168.1.{}:7420", NAMES[at], at + 1).parse().unwrap()
    }

    fn answers(own: usize, seen: &[Seen]) -> Vec<(Server, Answer)> {
        let answer = |(at, seen): (usize, &Seen)| {
            let answer = match seen {
                _ if at == own => Answer::Own,
                Seen::Blank => Answer::Blank,
                Seen::One => Answer::Member(ClusterId::from_bytes([1; 16])),
                Seen::Two => Answer::Member(ClusterId::from_bytes([2; 16])),
                Seen::Away => Answer::Failed(AskError::TimedOut { server: server(at) }),
            };
            (server(at), answer)
        };
        seen.iter().enumerate().map(answer).collect()
    }

    /// Every view that every node can have of a list of one to five servers.
    fn every_view() -> Vec<(usize, Vec<Seen>)> {
        let mut views = Vec::new();
        for count in 1..=5_u32 {
            for mut code in 0..4_usize.pow(count) {
                let mut seen = Vec::new();
                for _ in 0..count {
                    seen.push([Seen::Blank, Seen::One, Seen::Two, Seen::Away][code % 4]);
                    code /= 4;
                }
                views.extend((0..count as usize).map(|own| (own, seen.clone())));
            }
        }
        views
    }

    #[test]
    fn of_one_list_no_two_nodes_found_whatever_each_of_them_sees() {
        let mut founders = 0;
        for (own, seen) in every_view() {
            let decision = decide(&answers(own, &seen));
            let others = || seen.iter().enumerate().filter(|(at, _)| *at != own).map(|(_, seen)| *seen);
            let blank = 1 + others().filter(|seen| *seen == Seen::Blank).count();
            let known = others().any(|seen| matches!(seen, Seen::One | Seen::Two));
            let founds = decision == Ok(Decision::Found);
            // Only ever the node at one fixed place, so never two.
            assert_eq!(founds, own == 0 && !known && blank * 2 > seen.len(), "{own} {seen:?}");
            founders += usize::from(founds);
        }
        assert!(founders > 0);
    }

    #[test]
    fn whoever_knows_the_cluster_is_joined_and_two_clusters_are_an_error() {
        for (own, seen) in every_view() {
            let others: Vec<(usize, Seen)> = seen.iter().copied().enumerate().filter(|(at, _)| *at != own).collect();
            let members: Vec<Server> = others
                .iter()
                .filter(|(_, seen)| matches!(seen, Seen::One | Seen::Two))
                .map(|(at, _)| server(*at))
                .collect();
            let has = |which| others.iter().any(|(_, seen)| *seen == which);
            match decide(&answers(own, &seen)) {
                Err(_) => assert!(has(Seen::One) && has(Seen::Two)),
                Ok(Decision::Join(servers)) => assert_eq!(servers, members),
                Ok(Decision::Found | Decision::Wait(_)) => assert!(members.is_empty()),
            }
        }
    }

    #[test]
    fn a_node_that_waits_says_for_whom() {
        for (own, seen) in every_view() {
            let Ok(Decision::Wait(reason)) = decide(&answers(own, &seen)) else { continue };
            for (at, seen) in seen.iter().enumerate() {
                let missing = at != own && *seen == Seen::Away;
                assert!(!missing || reason.contains(NAMES[at]), "{reason}");
            }
        }
        let Ok(Decision::Wait(reason)) = decide(&answers(1, &[Seen::Away, Seen::Blank, Seen::Blank])) else { panic!() };
        assert!(reason.starts_with("alpha is first in cluster.servers"), "{reason}");
    }

    #[test]
    fn two_clusters_are_named_with_their_servers() {
        let error = decide(&answers(0, &[Seen::Blank, Seen::One, Seen::Two])).unwrap_err().to_string();
        assert!(error.contains("beta@") && error.contains("gamma@") && error.contains(&"02".repeat(16)), "{error}");
    }
}
