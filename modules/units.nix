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

  # Nothing starts an instance but the agent, and no switch touches one: a VM outlives what is around it.
  template = {
    restartIfChanged = false;
    stopIfChanged = false;
  };
in
{
  config = mkIf cfg.enable {
    systemd.services.blixard = {
      description = "Blixard agent";
      documentation = [ "https://github.com/blixard/blixard" ];
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
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
      serviceConfig = confined // {
        Type = "notify";
        WatchdogSec = "15s";
        ExecStart = "${blixard} agent --config /etc/blixard/config.toml";
        ExecReload = "${pkgs.coreutils}/bin/kill -HUP $MAINPID";
        Restart = "always";
        RestartSec = "1s";
        TimeoutStopSec = "30s";
        # root, for the units and the GC roots; without capabilities, it gives its socket to the group by being in it.
        Group = "blixard";
        CapabilityBoundingSet = "";
        UMask = "0077";
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
        RuntimeDirectory = "blixard";
        RuntimeDirectoryMode = "0750";
        RuntimeDirectoryPreserve = "yes";
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

    systemd.services."blixard-vm@" = template // {
      description = "Blixard VM %i";
      after = [
        "network.target"
        "systemd-modules-load.service"
      ];
      startLimitIntervalSec = 0;
      serviceConfig = confined // {
        Type = "notify";
        NotifyAccess = "all";
        Slice = "blixard-vms.slice";
        ExecStart = "${blixard} gate vm %i";
        ExecStop = "${blixard} gate stop %i";
        ExecStopPost = "${blixard} gate clean %i";
        Restart = "always";
        RestartSec = "2s";
        # 79: the gate says that this instance isn't to be started here, or not again.
        RestartPreventExitStatus = 79;
        SuccessExitStatus = 79;
        KillMode = "mixed";
        TimeoutStartSec = "300s";
        TimeoutStopSec = "150s";
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

    systemd.services."blixard-task@" = template // {
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

    systemd.slices.blixard-vms.description = "Blixard VMs";
    systemd.slices.blixard-tasks.description = "Blixard tasks";
  };
}
