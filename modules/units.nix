# The units. `systemd-analyze security` scores the agent and the templates; what each is still allowed is said beside it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) getExe mkIf optional;
  cfg = config.services.blixard;
  inherit (cfg.settings) fence;
  blixard = getExe cfg.package;

  # What neither the agent nor a gate nor a hypervisor needs.
  confined = {
    KeyringMode = "private";
    LockPersonality = true;
    NoNewPrivileges = true;
    PrivateMounts = true;
    PrivateTmp = true;
    ProtectClock = true;
    ProtectControlGroups = true;
    ProtectHome = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    ProtectSystem = "strict";
    RemoveIPC = true;
    # INET for the nodes' own talk, for taps, for a guest's user network and for what a task fetches.
    RestrictAddressFamilies = [
      "AF_INET"
      "AF_INET6"
      "AF_UNIX"
    ];
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
    SystemCallErrorNumber = "EPERM";
  };

  # What the agent and the fence have in common: each is root without capabilities, and makes their directory if it starts first.
  inRunDirectory = {
    Group = "blixard";
    CapabilityBoundingSet = "";
    UMask = "0077";
    RuntimeDirectory = "blixard";
    RuntimeDirectoryMode = "0750";
    RuntimeDirectoryPreserve = "yes";
  };

  # Nothing starts an instance but the agent, and no switch touches one, nor the fence: a VM outlives what is around it. What
  # is new in them applies from the next start on, which for the fence is the host's.
  template = {
    restartIfChanged = false;
    stopIfChanged = false;
  };

  # What runs here is stopped with the host only once that has been drained.
  drained.before = [ "blixard-drain.service" ];

  # Each is reached when the host has woken.
  sleepTargets = [
    "hibernate.target"
    "hybrid-sleep.target"
    "suspend-then-hibernate.target"
    "suspend.target"
  ];

  # A VM: the gate, and in its place the runner.
  instance = template // drained // {
    after = [
      "network.target"
      "systemd-modules-load.service"
    ];
    startLimitIntervalSec = 0;
    serviceConfig = confined // {
      Type = "notify";
      NotifyAccess = "all";
      ExecStopPost = "${blixard} gate clean %i";
      Restart = "always";
      RestartSec = "2s";
      # 79: the gate says that this instance isn't to be started here, or not again.
      RestartPreventExitStatus = 79;
      SuccessExitStatus = 79;
      TimeoutStartSec = "300s";
      LimitNOFILE = 1048576;
      LimitMEMLOCK = "infinity";
      UMask = "0077";
      StateDirectory = "blixard/vms";
      StateDirectoryMode = "0711";
      ReadWritePaths = [
        "-/run/blixard/vms"
      ]
      ++ optional (cfg.settings.node.data_dir != "/var/lib/blixard") "-${cfg.settings.node.data_dir}/vms";
      # Of the gate, before it becomes an ordinary user and the runner: to make taps, to give away the working directory.
      CapabilityBoundingSet = [
        "CAP_CHOWN"
        "CAP_NET_ADMIN"
        "CAP_SETGID"
        "CAP_SETUID"
      ];
      DevicePolicy = "closed";
      DeviceAllow = [
        "/dev/kvm rw"
        "/dev/net/tun rw"
        "/dev/vhost-net rw"
        "/dev/vhost-vsock rw"
      ];
      # Not MemoryDenyWriteExecute: QEMU without KVM compiles. Hypervisors sandbox themselves (seccomp, landlock).
      SystemCallFilter = [
        "@system-service"
        "~@resources"
        "seccomp"
        "landlock_add_rule"
        "landlock_create_ruleset"
        "landlock_restrict_self"
      ];
    };
  };
in
{
  config = mkIf cfg.enable {
    systemd.services.blixard = {
      description = "Blixard agent";
      documentation = [ "https://github.com/blixard/blixard" ];
      wantedBy = [ "multi-user.target" ];
      wants = [
        "network-online.target"
        "blixard-fence.service"
      ];
      after = [
        "network-online.target"
        "blixard-fence.service"
        "dbus.service"
        "nix-daemon.socket"
      ];
      path = [ config.nix.package ];
      # nix-store looks into it, and /root is hidden.
      environment.HOME = "/run/blixard";
      # VMs don't notice a restart of the agent, so a switch restarts it at once; a new manifest is only read anew.
      stopIfChanged = false;
      restartTriggers = [ config.environment.etc."blixard/config.toml".source ];
      reloadTriggers = optional (cfg.manifestFile != null) cfg.manifestFile;
      startLimitIntervalSec = 0;
      # root, for the units and the GC roots; it gives its socket to the group by being in it.
      serviceConfig = confined // inRunDirectory // {
        Type = "notify";
        WatchdogSec = "15s";
        ExecStart = "${blixard} agent --config /etc/blixard/config.toml";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "always";
        RestartSec = "1s";
        TimeoutStopSec = "30s";
        # The agent ends nix-store itself: of one that is told to stop it would think that there is no such path, and stop the VM.
        KillMode = "mixed";
        OOMScoreAdjust = -900;
        # A connection or two for every host of the cluster.
        LimitNOFILE = 65536;
        LoadCredential =
          optional (cfg.clusterSecretFile != null) "cluster-secret:${toString cfg.clusterSecretFile}"
          ++ optional (
            cfg.nextClusterSecretFile != null
          ) "next-cluster-secret:${toString cfg.nextClusterSecretFile}"
          ++ optional (cfg.clusterTokenFile != null) "join-token:${toString cfg.clusterTokenFile}"
          ++ optional (cfg.nodeKeyFile != null) "node-key:${toString cfg.nodeKeyFile}";
        # The hypervisors' user passes through to the working directories; the cluster's state below is 0700.
        StateDirectory = "blixard";
        StateDirectoryMode = "0711";
        # nix-store asks the daemon, so that of the store only the roots are written. /run/systemd: the limits that were
        # set on an instance are removed with it (system.control).
        ReadWritePaths = [
          "-/nix/var/nix/gcroots"
          "/run/systemd"
        ]
        ++ optional (cfg.settings.node.data_dir != "/var/lib/blixard") cfg.settings.node.data_dir;
        # Opened once, to know whether this host has it.
        DevicePolicy = "closed";
        DeviceAllow = [ "/dev/kvm rw" ];
        MemoryDenyWriteExecute = true;
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
          "@chown"
          "setpriority"
        ];
      };
    };

    # Its end is what matters, which comes before that of all that it is after.
    systemd.services.blixard-drain = mkIf (cfg.drainSeconds > 0) (
      template
      // {
        description = "Drain of this host before it goes down";
        wantedBy = [ "multi-user.target" ];
        after = [ "blixard.service" ];
        serviceConfig = confined // {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStop = "${blixard} going-down --config /etc/blixard/config.toml --timeout ${toString cfg.drainSeconds}s";
          TimeoutStopSec = cfg.drainSeconds + 30;
          CapabilityBoundingSet = "";
          PrivateDevices = true;
          SystemCallFilter = [
            "@system-service"
            "~@privileged @resources"
          ];
        };
      }
    );

    # Stops every blixard-auto@ when this node has no lease any more. If it dies, systemd stops them, and starts it again: it
    # then kills what is left before it answers anybody, and lets nothing start before the cluster has armed it anew.
    systemd.services.blixard-fence = template // {
      description = "Blixard fence";
      documentation = [ "https://github.com/blixard/blixard" ];
      wantedBy = [ "multi-user.target" ];
      conflicts = [ "sleep.target" ];
      before = [ "sleep.target" ];
      wants = optional (fence.watchdog == "/dev/watchdog") "blixard-softdog.service";
      after = optional (fence.watchdog == "/dev/watchdog") "blixard-softdog.service";
      startLimitIntervalSec = 0;
      serviceConfig = confined // inRunDirectory // {
        Type = "notify";
        ExecStart = "${blixard} fence run --config /etc/blixard/config.toml";
        ExecStop = "${blixard} fence end --config /etc/blixard/config.toml";
        Restart = "always";
        RestartSec = "100ms";
        # Until it is armed; the terms of its lease say how long from then on.
        WatchdogSec = "2s";
        WatchdogSignal = "SIGKILL";
        # What it found may take any time to die.
        TimeoutStartSec = "infinity";
        TimeoutStopSec = "30s";
        OOMScoreAdjust = -1000;
        LimitMEMLOCK = "infinity";
        LimitRTPRIO = 1;
        RestrictRealtime = false;
        # It kills by the control group of blixard-fenced.slice.
        ProtectControlGroups = false;
        PrivateNetwork = true;
        RestrictAddressFamilies = [ "AF_UNIX" ];
        # A directory of its own below /tmp would take a disk that may be full.
        PrivateTmp = false;
        DevicePolicy = "closed";
        DeviceAllow = optional (fence.watchdog != "none") "${fence.watchdog} rw";
        MemoryDenyWriteExecute = true;
        SystemCallFilter = [
          "@system-service"
          "~@privileged @resources"
          "@chown"
          "sched_setscheduler"
        ];
      };
    };

    # A host that sleeps runs nothing of what starts elsewhere meanwhile, nor when it wakes: no watchdog counts until then.
    systemd.services.blixard-fence-resume = template // {
      description = "Blixard fence, after a sleep";
      wantedBy = sleepTargets;
      after = sleepTargets;
      serviceConfig = {
        Type = "oneshot";
        ExecStart = "${config.systemd.package}/bin/systemctl start --no-block blixard-fence.service";
      };
    };

    # A watchdog in the kernel, where the hardware has none.
    systemd.services.blixard-softdog = mkIf (fence.watchdog == "/dev/watchdog") (
      template
      // {
        description = "Watchdog of the kernel's own, for the Blixard fence";
        unitConfig.ConditionPathExists = "!/dev/watchdog";
        serviceConfig = {
          Type = "oneshot";
          RemainAfterExit = true;
          ExecStart = "${pkgs.kmod}/bin/modprobe softdog";
        };
      }
    );

    # What starts elsewhere when its node isn't heard any more: only the fence lets it start, and it dies with the fence. There
    # is no ExecStop, as nothing may keep it alive; a guest that is to stop in order is asked by blixard-stop@ before.
    systemd.services."blixard-auto@" = instance // {
      description = "Blixard VM %i (automatic)";
      bindsTo = [ "blixard-fence.service" ];
      after = instance.after ++ [ "blixard-fence.service" ];
      serviceConfig = instance.serviceConfig // {
        Slice = "blixard-fenced.slice";
        ExecStart = "${blixard} gate auto %i";
        KillSignal = "SIGKILL";
        TimeoutStopSec = "30s";
      };
    };

    # Asks the guest of blixard-auto@ to stop, and ends when it has; the agent then stops that unit. It can be started while the
    # host goes down, too: it needs nothing that is on its way out by then.
    systemd.services."blixard-stop@" = template // {
      description = "Stop of Blixard VM %i";
      startLimitIntervalSec = 0;
      unitConfig.DefaultDependencies = false;
      serviceConfig = confined // {
        Type = "oneshot";
        Slice = "system.slice";
        PrivateTmp = false;
        ExecStart = "${blixard} gate ask %i";
        TimeoutStartSec = "150s";
        # It looks which process is the VM's, and becomes the user who may talk to it.
        ProtectProc = "default";
        UMask = "0077";
        CapabilityBoundingSet = [
          "CAP_SETGID"
          "CAP_SETUID"
        ];
        PrivateDevices = true;
        ReadWritePaths = [ "-${cfg.settings.node.data_dir}/vms" ];
        SystemCallFilter = [
          "@system-service"
          "~@resources"
        ];
      };
    };

    # What no fence stops.
    systemd.services."blixard-vm@" = instance // {
      description = "Blixard VM %i (manual)";
      serviceConfig = instance.serviceConfig // {
        Slice = "blixard-vms.slice";
        ExecStart = "${blixard} gate vm %i";
        ExecStop = "${blixard} gate stop %i";
        KillMode = "mixed";
        TimeoutStopSec = "150s";
      };
    };

    systemd.services."blixard-task@" = template // drained // {
      description = "Blixard task %i";
      after = [ "network.target" ];
      # A task finds what whoever logs in finds.
      path = [ "/run/current-system/sw" ];
      serviceConfig = confined // {
        Type = "exec";
        Slice = "blixard-tasks.slice";
        ExecStart = "${blixard} gate task %i";
        ExecStopPost = "${blixard} gate clean-task %i";
        Restart = "no";
        TimeoutStopSec = "30s";
        UMask = "0077";
        StateDirectory = "blixard/tasks";
        StateDirectoryMode = "0711";
        ReadWritePaths = [
          "-/run/blixard/tasks"
        ]
        ++ optional (
          cfg.settings.node.data_dir != "/var/lib/blixard"
        ) "-${cfg.settings.node.data_dir}/tasks";
        # Of the gate, before it becomes an ordinary user and after: to give away the scratch directory, to remove it.
        CapabilityBoundingSet = [
          "CAP_CHOWN"
          "CAP_DAC_OVERRIDE"
          "CAP_SETGID"
          "CAP_SETUID"
        ];
        PrivateDevices = true;
        SystemCallFilter = [ "@system-service" ];
      };
    };

    systemd.slices.blixard-fenced.description = "Blixard VMs that the fence stops";
    systemd.slices.blixard-vms.description = "Blixard VMs that no fence stops";
    systemd.slices.blixard-tasks.description = "Blixard tasks";
  };
}
