//! How a run ended, from what systemd tells `ExecStopPost=`, and what that means for the next start.

use blixard_core::types::{Exit, Generation, RestartPolicy};
use blixard_core::unit::ExitRecord;

/// The gate's exit status for "not to be started": the unit names it in `RestartPreventExitStatus=`.
pub const REFUSED: u8 = 79;
/// The gate's exit status for a start that failed before the runner's first instruction.
pub const NOT_STARTED: u8 = 78;
/// A program that can't be executed, and one that isn't there: what a shell says.
pub const NOT_EXECUTABLE: u8 = 126;
pub const NOT_FOUND: u8 = 127;

/// Signals 1 to 31, in order, as systemd writes them.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// The run's end, from `$EXIT_CODE` and `$EXIT_STATUS` (`systemd.exec(5)`); without them nothing was started.
pub fn exit_of(code: Option<&str>, status: Option<&str>) -> Exit {
    match (code, status) {
        (Some("exited"), Some(status)) => status.parse().map_or(Exit::NotStarted, Exit::Exited),
        (Some("killed" | "dumped"), Some(signal)) => Exit::Killed(signal_number(signal)),
        _ => Exit::NotStarted,
    }
}

/// Numbers as on x86-64 and arm64; 0 for a name that systemd has invented since.
fn signal_number(name: &str) -> i32 {
    let named = (1..).zip(SIGNALS).find(|(_, known)| *known == name).map(|(number, _)| number);
    let from = |base: i32, offset: &str, sign: i32| Some(base + sign * offset.parse::<i32>().unwrap_or(0));
    named
        .or_else(|| name.strip_prefix("RTMIN").and_then(|rest| from(34, rest.trim_start_matches('+'), 1)))
        .or_else(|| name.strip_prefix("RTMAX").and_then(|rest| from(64, rest.trim_start_matches('-'), -1)))
        .or_else(|| name.parse().ok())
        .unwrap_or(0)
}

/// Whether an instance that ended like this in this generation is not to be started again.
pub fn is_over(last: Option<&ExitRecord>, generation: Generation, restart: RestartPolicy) -> bool {
    last.is_some_and(|last| last.generation == generation && !restart.restarts_after(&last.exit))
}

/// The record to write after a run, or nothing where the end is only the gate's own and the record there says more.
///
/// The gate asked [`is_over`] of the same record before it refused, so a runner that itself ends with [`REFUSED`] is
/// still told apart from a refusal.
pub fn record(
    last: Option<&ExitRecord>,
    generation: Generation,
    restart: RestartPolicy,
    exit: Exit,
) -> Option<ExitRecord> {
    let refused = exit == Exit::Exited(REFUSED.into()) && is_over(last, generation, restart);
    let not_started = ExitRecord { generation, exit: Exit::NotStarted };
    let failed = exit == Exit::Exited(NOT_STARTED.into()) && last == Some(&not_started);
    (!refused && !failed).then_some(ExitRecord { generation, exit })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Generation = Generation(2);

    fn ended(generation: u64, exit: Exit) -> ExitRecord {
        ExitRecord { generation: Generation(generation), exit }
    }

    #[test]
    fn an_exit_is_read_as_systemd_writes_it() {
        assert_eq!(exit_of(Some("exited"), Some("3")), Exit::Exited(3));
        assert_eq!(exit_of(Some("killed"), Some("KILL")), Exit::Killed(9));
        assert_eq!(exit_of(Some("dumped"), Some("SEGV")), Exit::Killed(11));
        assert_eq!(exit_of(Some("killed"), Some("SYS")), Exit::Killed(31));
        assert_eq!(exit_of(Some("killed"), Some("RTMIN+3")), Exit::Killed(37));
        assert_eq!(exit_of(Some("killed"), Some("RTMAX-1")), Exit::Killed(63));
        assert_eq!(exit_of(None, None), Exit::NotStarted);
    }

    #[test]
    fn only_an_end_of_this_generation_counts_against_a_start() {
        assert!(!is_over(None, NOW, RestartPolicy::Never));
        assert!(!is_over(Some(&ended(1, Exit::Exited(0))), NOW, RestartPolicy::Never));
        assert!(is_over(Some(&ended(2, Exit::Killed(9))), NOW, RestartPolicy::Never));
        assert!(is_over(Some(&ended(2, Exit::Exited(0))), NOW, RestartPolicy::OnFailure));
        assert!(!is_over(Some(&ended(2, Exit::Exited(1))), NOW, RestartPolicy::OnFailure));
        assert!(!is_over(Some(&ended(2, Exit::Exited(0))), NOW, RestartPolicy::Always));
    }

    #[test]
    fn a_refusal_keeps_the_record_of_the_run_before() {
        let refused = Exit::Exited(REFUSED.into());
        let last = ended(2, Exit::Exited(3));
        assert_eq!(record(Some(&last), NOW, RestartPolicy::Never, refused), None);
        let runners_own = Some(ended(2, refused));
        assert_eq!(record(Some(&last), NOW, RestartPolicy::Always, refused), runners_own);
        assert_eq!(record(None, NOW, RestartPolicy::Never, refused), runners_own);
    }

    #[test]
    fn a_start_that_failed_in_the_gate_is_not_taken_for_the_runners_exit() {
        let failed = Exit::Exited(NOT_STARTED.into());
        assert_eq!(record(Some(&ended(2, Exit::NotStarted)), NOW, RestartPolicy::Always, failed), None);
        assert_eq!(record(None, NOW, RestartPolicy::Always, failed), Some(ended(2, failed)));
    }
}
