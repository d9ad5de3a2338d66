//! A program that has another one run.

use std::process::Command;

/// What has `wrapper` run a command: with the command as its last arguments, and in the command's environment.
pub fn wrap(mut wrapper: Command, command: &Command) -> Command {
    wrapper.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapper.env(name, value),
            None => wrapper.env_remove(name),
        };
    }
    wrapper
}
