# The VMs: declared by a microvm.nix guest configuration, or by ready runners.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    genList
    head
    length
    literalExpression
    mkOption
    types
    ;
  cfg = config.services.blixard;

  hypervisors = import ./hypervisors.nix;
  identity = import ./identity.nix { inherit lib; };
  buildRunners =
    name: guest: replicas:
    genList (
      k:
      (import (cfg.microvm + "/lib") { inherit lib; }).buildRunner {
        inherit (guest) pkgs;
        inherit (guest.config.system.build) toplevel;
        microvmConfig = guest.config.microvm // identity name guest.config.microvm k;
      }
    ) replicas;

  evaluate =
    name: guest:
    if cfg.microvm == null then
      throw ''
        services.blixard.vms.${name}.config is a microvm.nix guest, but services.blixard.microvm isn't set.
        Import the flake's nixosModules.default, or set services.blixard.microvm to microvm.nix's source.
      ''
    else
      import (pkgs.path + "/nixos/lib/eval-config.nix") {
        inherit lib pkgs;
        inherit (pkgs.stdenv.hostPlatform) system;
        prefix = [
          "services"
          "blixard"
          "vms"
          name
          "config"
        ];
        modules = [
          (cfg.microvm + "/nixos-modules/microvm")
          {
            networking.hostName = lib.mkDefault name;
            # Every replica gets its own when it starts, and a file would win over it now and then.
            environment.etc.hostname.enable = lib.mkDefault false;
            microvm.machineId = lib.mkDefault null;
          }
          guest
        ];
      };

  vmModule =
    {
      name,
      config,
      options,
      ...
    }:
    let
      guest = config.evaluated.config;
      fromGuest = config.config != null;
      fromRunner =
        attribute: default:
        if config.runners == [ ] then default else (head config.runners).${attribute} or default;
    in
    {
      options = {
        config = mkOption {
          type = types.nullOr types.deferredModule;
          default = null;
          example = literalExpression ''
            {
              microvm.mem = 512;
              microvm.interfaces = [ { type = "tap"; id = "vm-web"; mac = "02:00:00:00:00:10"; } ];
              services.nginx.enable = true;
            }
          '';
          description = ''
            The VM as a microvm.nix guest configuration. It is evaluated once, and one runner is built from it for each
            replica: replica K of the VM `web` has the host name `web-K`, its own machine id and control socket, and K
            added to every interface's MAC address, to the vsock id and, as a suffix, to the tap's name. What replicas
            shall not share, such as a static address, can be told apart by `matchConfig.Host` of systemd-networkd.
          '';
        };
        runners = mkOption {
          type = types.listOf types.pathInStore;
          default = if fromGuest then buildRunners name config.evaluated config.replicas else [ ];
          defaultText = literalExpression "one for each replica, built from config";
          description = ''
            Ready runners as microvm.nix builds them, one for each replica, instead of {option}`config`. They must
            differ in whatever two VMs can't share: `blixard-vm@.service` refuses a tap that another VM has.
          '';
        };
        replicas = mkOption {
          type = types.ints.positive;
          default = if fromGuest then 1 else lib.max 1 (length config.runners);
          defaultText = literalExpression "1, or as many as there are runners";
          description = ''
            How many of this VM the cluster runs, on different hosts as far as there are enough. Those that fit on no
            host stay pending, and {command}`blixard explain` says why.
          '';
        };
        hypervisor = mkOption {
          type = types.enum hypervisors;
          default = if fromGuest then guest.microvm.hypervisor else fromRunner "hypervisor" "qemu";
          defaultText = literalExpression "that of the guest or of the runner, else \"qemu\"";
          description = ''
            The hypervisor of the runners. It is placed only on hosts that offer it, and sets what
            {option}`memoryOverheadMiB` is by default.
          '';
        };
        system = mkOption {
          type = types.str;
          default = pkgs.stdenv.hostPlatform.system;
          defaultText = literalExpression "pkgs.stdenv.hostPlatform.system";
          description = "The system that the runners are built for. The VM is placed only on hosts of that kind.";
        };
        vcpus = mkOption {
          type = types.ints.positive;
          default =
            if fromGuest then
              guest.microvm.vcpu
            else
              throw "services.blixard.vms.${name}: state vcpus, which can't be read from ready runners.";
          defaultText = literalExpression "config.microvm.vcpu";
          description = ''
            Virtual processors of each replica. They are read from {option}`config`, and must be stated for
            {option}`runners`; a number too small slows the VM down, since `blixard-vm@.service` is limited to it.
          '';
        };
        memoryMiB = mkOption {
          type = types.ints.positive;
          default =
            if fromGuest then
              guest.microvm.mem + guest.microvm.hotplugMem
            else
              throw "services.blixard.vms.${name}: state memoryMiB, which can't be read from ready runners.";
          defaultText = literalExpression "config.microvm.mem + config.microvm.hotplugMem";
          description = ''
            Memory of the guest in MiB. It is read from {option}`config`, where more can be stated, and must be stated
            for {option}`runners`; with a number too small the kernel kills the VM, since `blixard-vm@.service` is limited
            to it and the overhead.
          '';
        };
        memoryOverheadMiB = mkOption {
          type = types.nullOr types.ints.unsigned;
          default = null;
          description = ''
            Memory in MiB that the hypervisor needs besides the guest's. If null, the agent takes its figure for the
            hypervisor; with a number too small the kernel kills the VM when it is busy.
          '';
        };
        diskMiB = mkOption {
          type = types.ints.unsigned;
          default =
            if fromGuest then
              lib.foldl' (
                sum: volume: sum + (if volume.autoCreate then volume.size else 0)
              ) 0 guest.microvm.volumes
            else
              0;
          defaultText = literalExpression "the sizes of config.microvm.volumes that are created automatically";
          description = ''
            Disk space in MiB that a replica needs under {file}`/var/lib/blixard/vms`. With a number too small a host
            can run out of it while `blixard-vm@.service` runs.
          '';
        };
        kvm = mkOption {
          type = types.bool;
          default = if fromGuest then guest.microvm.cpu == null || config.hypervisor != "qemu" else true;
          defaultText = literalExpression "true, unless config.microvm.cpu has QEMU emulate a processor";
          description = ''
            Whether the VM needs {file}`/dev/kvm`, and is placed only on hosts that have it. If it is false for a runner
            that needs it, `blixard-vm@.service` fails on a host without.
          '';
        };
        requires = mkOption {
          type = types.attrsOf types.str;
          default = { };
          example = {
            zone = "a";
          };
          description = ''
            Labels that a node must have ({option}`services.blixard.settings.node.labels`) for the VM to be placed on
            it. If no node has them all, the VM stays pending.
          '';
        };
        restart = mkOption {
          type = types.enum [
            "always"
            "on-failure"
            "never"
          ];
          default = "always";
          description = ''
            When `blixard-vm@.service` starts the VM again after it ended by itself. A guest that reboots ends its
            hypervisor, so with "never" it doesn't come back.
          '';
        };
        notifies = mkOption {
          type = types.bool;
          default = fromRunner "supportsNotifySocket" false;
          defaultText = literalExpression "what the runner says of itself";
          description = ''
            Whether the runner itself tells systemd that the guest has booted. If it is true for a runner that doesn't,
            `blixard-vm@.service` fails when its start times out.
          '';
        };
        failover = mkOption {
          type = types.enum [
            "automatic"
            "manual"
          ];
          default = "automatic";
          description = ''
            What becomes of the VM where its host is cut off, or lost. "automatic": the host stops it in time, and another
            one starts it. "manual": it runs on, and another host starts it only once a person has said that its own is
            dead, with {command}`blixard node confirm-dead`. A VM with {option}`diskMiB` is manual whatever is set here,
            and so are all where fewer than three hosts are to be servers.
          '';
        };
        priority = mkOption {
          type = types.ints.between 0 1000;
          default = 500;
          description = ''
            How early the VM is placed where several wait for a host, the highest first. If there is too little room
            after the loss of a host, those of the lowest stay pending; none is stopped for another.
          '';
        };
        minAvailable = mkOption {
          type = types.nullOr types.ints.unsigned;
          default = null;
          example = 3;
          description = ''
            How many replicas run at least while hosts are drained, or shut down in an orderly way; fewer than there are.
            Null means all but one. The fewer, the sooner a host is empty; the VM's `blixard-vm@.service` on it is stopped
            only once so many others run.
          '';
        };
        stated = mkOption {
          type = types.attrsOf types.bool;
          internal = true;
          readOnly = true;
          default = lib.genAttrs [ "runners" "vcpus" "memoryMiB" "hypervisor" ] (
            option: options.${option}.highestPrio < (lib.mkOptionDefault { }).priority
          );
          description = "Which of the options that config fills in were set by a person.";
        };
        evaluated = mkOption {
          type = types.raw;
          internal = true;
          readOnly = true;
          default = if fromGuest then evaluate name config.config else null;
          description = "The evaluated guest.";
        };
      };
    };

in
{
  options.services.blixard = {
    microvm = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "inputs.microvm";
      description = ''
        The source of microvm.nix, with which the guests of {option}`services.blixard.vms` are evaluated and their
        runners built. The flake's module sets it; without it no VM can be declared by {option}`config`.
      '';
    };

    vms = mkOption {
      type = types.nullOr (types.attrsOf (types.submodule vmModule));
      default = null;
      example = literalExpression ''
        {
          web = {
            replicas = 2;
            config = {
              microvm.mem = 512;
              microvm.interfaces = [ { type = "tap"; id = "vm-web"; mac = "02:00:00:00:00:10"; } ];
              services.nginx.enable = true;
            };
          };
        }
      '';
      description = ''
        The VMs that the cluster runs, for the whole cluster: every host that has this option must have the same VMs,
        and a host may leave it out. A VM that leaves the set is stopped and removed. Null means that this host carries
        no manifest, which removes nothing; to remove the last VM, set it to `{ }`.
      '';
    };
  };
}
