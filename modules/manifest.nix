# The manifest: what services.blixard.vms becomes, and where the agent finds it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filterAttrs
    literalExpression
    mapAttrs
    mkOption
    types
    ;
  cfg = config.services.blixard;

  entry = vm: {
    inherit (vm)
      system
      hypervisor
      vcpus
      memoryMiB
      diskMiB
      kvm
      requires
      restart
      notifies
      failover
      priority
      ;
    runners = map (runner: "${runner}") vm.runners;
  };
  milliseconds =
    most: what:
    mkOption {
      type = types.ints.between 1 most;
      description = ''
        ${what}, in milliseconds. {command}`blixard check-manifest` refuses times that don't fit together, when the system
        is built.
      '';
    };
  leaseTimes = {
    leaseMs = milliseconds 600000 "How long a host may run VMs after it has asked for the renewal that it was granted last";
    renewMs = milliseconds 150000 "How often a host renews its lease: at most a quarter of that";
    killMs = milliseconds 600000 "How long its fence may take, after that, until none of them runs";
    waitMs = milliseconds 4294967295 "How long after a host was heard last the others start its VMs: a little more than both together";
  };
  # Left out, the agent takes its own figure.
  optional = vm: filterAttrs (_: value: value != null) { inherit (vm) memoryOverheadMiB minAvailable; };
in
{
  options.services.blixard = {
    cluster = {
      servers = mkOption {
        type = types.enum [
          1
          3
          5
        ];
        default = 3;
        description = ''
          How many hosts keep the cluster's state and vote on it, as far as there are so many. It travels in the manifest,
          so that it changes for all hosts at one moment. Three survive the loss of one, five that of two, and each more
          slows every change.
        '';
      };
      lease = mkOption {
        type = types.either (types.enum [
          "fast"
          "default"
          "relaxed"
        ]) (types.submodule { options = leaseTimes; });
        default = "default";
        description = ''
          How long a host may run VMs of {option}`services.blixard.vms.<name>.failover` "automatic" unheard, and how long
          the others wait until they start them: 16 seconds by default, 9 with "fast", for a wired local network, 50 with
          "relaxed", for networks and hosts that stall; or the four times. If a host stalls for longer than its lease,
          its fence stops those VMs.
        '';
      };
      replaceServersAfterSeconds = mkOption {
        type = types.ints.between 10 4294967295;
        default = 300;
        description = ''
          How long a server has to be silent until another host takes its place; the old one, should it return, is a
          worker. If this is shorter than a reboot, each reboot moves a server.
        '';
      };
    };

    nodes = mkOption {
      type = types.attrsOf (
        types.submodule {
          options.publicKey = mkOption {
            # An Ed25519 key as every one is written (RFC 8410).
            type = types.strMatching "MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=";
            example = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
            description = ''
              The public part of the key in this host's {option}`services.blixard.nodeKeyFile`: the line that
              {command}`openssl pkey -pubout` prints between BEGIN and END. A host of this name with another key isn't
              let in.
            '';
          };
        }
      );
      default = { };
      description = ''
        Hosts that join by a key of their own, by their names, and by nothing else. It travels in the manifest, so it
        belongs beside {option}`services.blixard.vms`. The key is asked for when a host joins, and at no other time: to
        change it removes no member.
      '';
    };

    manifestFile = mkOption {
      type = types.nullOr types.path;
      default =
        if cfg.rendered.manifest == null then
          null
        else
          cfg.check "check-manifest" (
            (pkgs.formats.json { }).generate "blixard-manifest.json" cfg.rendered.manifest
          );
      defaultText = literalExpression "the manifest of services.blixard.vms, or null if that is null";
      description = ''
        The manifest that this host offers to the cluster as {file}`/etc/blixard/manifest.json`, checked by
        {command}`blixard check-manifest` when the system is built. Set it to what `lib.mkManifest` returns to evaluate
        the VMs once for all hosts. If null, the host carries none and takes the cluster's.
      '';
    };

    rendered.manifest = mkOption {
      type = types.nullOr types.attrs;
      internal = true;
      readOnly = true;
      description = "The manifest of services.blixard.vms as data, or null if there are none.";
      default =
        if cfg.vms == null then
          null
        else
          {
            version = 1;
            inherit (cfg) cluster nodes;
            vms = mapAttrs (_: vm: entry vm // optional vm) cfg.vms;
          };
    };
  };
}
