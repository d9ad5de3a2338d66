"""How long a start takes as the agent makes it, with the fence and the gate, beside `systemctl start` of the same unit."""

ROUNDS = int(os.environ.get("BLIXARD_ROUNDS", "3"))
STARTS = 20

delta.start()
delta.wait_for_unit("blixard-fence.service")
delta.succeed("systemctl stop blixard.service")
delta.copy_from_host(str(example("start_vm")), "/usr/local/bin/start-vm")
[runner] = idle_runners(delta, 1)
sides = {"agent": [], "systemctl": []}
reloads = Reloads([delta])
for _ in range(ROUNDS):
    delta.succeed("systemctl restart blixard-fence.service")
    took = delta.succeed(f"start-vm /etc/blixard/config.toml idle-0 {runner} {STARTS}").split()
    for side, rounds in sides.items():
        rounds.append([float(ms) for of, ms in zip(took[::2], took[1::2]) if of == side])
report.ratio("from being told until the job is done", sides, gate=1.0, goal=0.45)
report.at_most("reloads of units", [reloads.count()], gate=0, goal=0)
