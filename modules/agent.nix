# The agent: its options, its config.toml, and the users, devices and ports that it needs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib)
    filterAttrsRecursive
    head
    last
    length
    literalExpression
    mkEnableOption
    mkIf
    mkOption
    splitString
    toInt
    types
    unique
    ;
  cfg = config.services.blixard;
  inherit (cfg) settings;
  format = pkgs.formats.toml { };

  label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
  # What is loaded as a credential is where the service reads it.
  credential = file: name: if file == null then null else "/run/credentials/blixard.service/${name}";
  # By what this node joins.
  credentials = lib.filter (file: file != null) [
    settings.cluster.secret_file
    settings.cluster.token_file
    settings.node.key_file
  ];
  serverNames = map (server: head (splitString "@" server)) settings.cluster.servers;

  # Asked of the VMs first, so that what is wrong with one is said by its assertion and not by its manifest.
  carriesManifest = cfg.vms != null || cfg.manifestFile != null;

  # Kept for each machine; null means that the agent asks the machine.
  amount =
    what:
    mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      description = ''
        ${what} that this host offers to the cluster. If null, `blixard.service` reads from the machine how much there is;
        a number above that lets VMs be placed that can't run.
      '';
    };
  reserved =
    what: default:
    mkOption {
      type = types.ints.unsigned;
      inherit default;
      description = ''
        ${what} kept for the host itself and never given to VMs. With too little, a full host starves
        `blixard.service` and loses its VMs to other hosts.
      '';
    };
in
{
  options.services.blixard = {
    enable = mkEnableOption "the Blixard agent, which makes this host a member of a cluster that runs microVMs";

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to open the port of {option}`services.blixard.settings.node.listen` for the other nodes. If it stays
        closed and nothing else opens it, this node never joins.
      '';
    };

    drainSeconds = mkOption {
      # systemd itself reboots by force after half an hour.
      type = types.ints.between 0 1500;
      default = 300;
      description = ''
        How many seconds this host waits at most, when it shuts down or reboots, until its VMs run on others:
        `blixard-drain.service` empties it then, and `blixard.service` lets it be used again after the boot. What is left is
        stopped with the host; so is everything at once where there is no quorum to move anything, or with 0 here.
      '';
    };

    clusterSecretFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "config.age.secrets.blixard.path";
      description = ''
        A file on the host, outside the Nix store, with the secret that all nodes of the cluster share: at least 32
        bytes, for example from {command}`openssl rand -hex 32`. It is handed to `blixard.service` as a credential; a
        node with another secret than the rest isn't let in. Only nodes that have it can let others in.
      '';
    };

    nextClusterSecretFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "config.age.secrets.blixard-next.path";
      description = ''
        A file as {option}`services.blixard.clusterSecretFile`, with the secret that is to take the place of that one:
        once all nodes that have the one have the other, too, {command}`blixard cluster rotate-secret` does it, and this
        file is given as the former. It is handed to `blixard.service` as a credential, which doesn't start without it.
      '';
    };

    clusterTokenFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "config.age.secrets.blixard-token.path";
      description = ''
        A file on the host, outside the Nix store, with a token from {command}`blixard token create`, by which this node
        joins instead of by {option}`services.blixard.clusterSecretFile`. It is handed to `blixard.service` as a
        credential, which doesn't start without the file; once this node has joined, what is in it makes no difference.
      '';
    };

    nodeKeyFile = mkOption {
      type = types.nullOr types.path;
      default = null;
      example = literalExpression "config.age.secrets.blixard-node.path";
      description = ''
        A file on the host, outside the Nix store, with a key of this node's own, from
        {command}`openssl genpkey -algorithm ed25519`, by which it joins instead of by
        {option}`services.blixard.clusterSecretFile`. It is handed to `blixard.service` as a credential, which doesn't start
        without the file. Unless {option}`services.blixard.nodes` declares its public part, this node isn't let in.
      '';
    };

    settings = mkOption {
      default = { };
      description = ''
        The agent's configuration, {file}`/etc/blixard/config.toml`. It is checked by {command}`blixard check-config`
        when the system is built, so that a wrong key fails the build and not `blixard.service`.
      '';
      example = literalExpression ''
        {
          cluster.servers = [ "alpha@10.0.0.1:7420" "beta@10.0.0.2:7420" "gamma@10.0.0.3:7420" ];
          node.labels.zone = "a";
          vms.bridge = "br0";
        }
      '';
      type = types.submodule {
        freeformType = format.type;
        options = {
          node = {
            name = mkOption {
              type = types.strMatching label;
              default = config.networking.hostName;
              defaultText = literalExpression "config.networking.hostName";
              description = ''
                This node's name in the cluster, a DNS label. A name that a live node already has is refused.
              '';
            };
            address = mkOption {
              type = types.nullOr (types.strMatching ".+:[0-9]{1,5}");
              default = null;
              example = "10.0.0.4:7420";
              description = ''
                Where the other nodes reach `blixard.service` on this host, if it isn't among
                {option}`services.blixard.settings.cluster.servers`. If the others can't reach it there, this host never
                becomes a server.
              '';
            };
            key_file = mkOption {
              type = types.nullOr (types.strMatching "/.+");
              default = credential cfg.nodeKeyFile "node-key";
              defaultText = "the credential made from services.blixard.nodeKeyFile";
              description = ''
                Where `blixard.service` reads the key by which this node joins, if it has one of its own. While the
                manifest declares none, or another, for this node, it waits.
              '';
            };
            role = mkOption {
              type = types.enum [
                "auto"
                "server"
                "worker"
              ];
              default = "auto";
              description = ''
                What this host may be. Servers keep the cluster's state and vote; all others are told what to run.
                "auto": a server where the cluster needs one, "server": before those that aren't declared one, and with a
                copy of the state also while it doesn't vote, "worker": never. With too few that may be servers, the
                cluster doesn't survive the loss of one.
              '';
            };
            listen = mkOption {
              type = types.strMatching ".+:[0-9]{1,5}";
              default = "[::]:7420";
              description = ''
                Address and port on which `blixard.service` talks to the other nodes. They must be able to reach it
                under the address that `cluster.servers` gives for this node.
              '';
            };
            data_dir = mkOption {
              type = types.strMatching "/.+";
              default = "/var/lib/blixard";
              description = ''
                Where `blixard.service` keeps the cluster's state, and VMs their volumes. If it is lost, this node has
                lost its identity, and its VMs what they had stored.
              '';
            };
            labels = mkOption {
              type = types.attrsOf types.str;
              default = { };
              example = {
                zone = "a";
              };
              description = ''
                Labels of this node. A VM whose {option}`requires` names a label that no node has is never placed.
              '';
            };
          };
          cluster = {
            servers = mkOption {
              type = types.nonEmptyListOf (types.strMatching "${label}@.+:[0-9]{1,5}");
              example = [
                "alpha@10.0.0.1:7420"
                "beta@10.0.0.2:7420"
                "gamma@10.0.0.3:7420"
              ];
              description = ''
                The hosts by which a new one finds the cluster, as `name@address:port`, the same list on every host. The
                first of them founds the cluster once most of them are up, so a list that differs between hosts can
                keep it from being founded. Hosts that aren't in it set {option}`services.blixard.settings.node.address`.
              '';
            };
            secret_file = mkOption {
              type = types.nullOr (types.strMatching "/.+");
              default = credential cfg.clusterSecretFile "cluster-secret";
              defaultText = "the credential made from services.blixard.clusterSecretFile";
              description = ''
                Where `blixard.service` reads the cluster's secret; the service doesn't start without it, unless
                {option}`services.blixard.settings.cluster.token_file` is set instead.
              '';
            };
            next_secret_file = mkOption {
              type = types.nullOr (types.strMatching "/.+");
              default = credential cfg.nextClusterSecretFile "next-cluster-secret";
              defaultText = "the credential made from services.blixard.nextClusterSecretFile";
              description = ''
                Where `blixard.service` reads the secret that is to take the place of the cluster's.
              '';
            };
            token_file = mkOption {
              type = types.nullOr (types.strMatching "/.+");
              default = credential cfg.clusterTokenFile "join-token";
              defaultText = "the credential made from services.blixard.clusterTokenFile";
              description = ''
                Where `blixard.service` reads the token by which this node joins, if it doesn't have the cluster's
                secret. With one that was used, or has expired, it waits for another.
              '';
            };
            authority = mkOption {
              type = types.nullOr (types.strMatching "[0-9a-f]{32}:[0-9a-f]{64}");
              default = null;
              description = ''
                By what a node with {option}`services.blixard.nodeKeyFile` knows the cluster that it joins: what
                {command}`blixard cluster authority` prints on a member. `blixard.service` tells nothing to a server that
                isn't of this cluster, so with a wrong one, or after {command}`blixard cluster rotate-ca`, it never joins.
              '';
            };
          };
          fence = {
            watchdog = mkOption {
              type = types.either (types.enum [ "none" ]) (types.strMatching "/dev/.+");
              default = "/dev/watchdog";
              description = ''
                The device that resets this host if `blixard-fence.service` hangs, so that no VM is running here while it
                runs elsewhere. Where there is no {file}`/dev/watchdog`, `blixard-softdog.service` loads one. If another
                has it open, as systemd has with {option}`systemd.watchdog.runtimeTime`, this host runs no VM whose
                `failover` is "automatic". With "none" it does, and nothing stops these if PID 1 and the fence hang at once.
                One whose driver can't be stopped (`nowayout`) resets this host whenever that service is stopped.
              '';
            };
            allow_virtual_hosts = mkOption {
              type = types.bool;
              default = false;
              description = ''
                Whether VMs whose `failover` is "automatic" run on this host although it is a virtual machine. What
                pauses such a host stops `blixard-fence.service`, too, and no clock shows it: when it goes on, it runs
                for a moment what runs elsewhere by now. Set it only where the host is never paused or moved.
              '';
            };
          };
          resources = {
            cpus = amount "Processors";
            memory_mib = amount "Memory in MiB";
            disk_mib = amount "Disk space in MiB";
            reserve = {
              cpus = reserved "Processors" 0;
              memory_mib = reserved "Memory in MiB" 512;
              disk_mib = reserved "Disk space in MiB" 1024;
            };
          };
          tasks = {
            user = mkOption {
              type = types.str;
              default = "blixard-task";
              description = ''
                The user who runs tasks in `blixard-task@.service`; not the user of the hypervisors, whose processes a
                task could then signal. Any other than the default must be declared elsewhere.
              '';
            };
            group = mkOption {
              type = types.str;
              default = "blixard-task";
              description = ''
                The group of the tasks in `blixard-task@.service`. Any other than the default must be declared
                elsewhere, or no task starts.
              '';
            };
          };
          vms = {
            user = mkOption {
              type = types.str;
              default = "blixard-vm";
              description = ''
                The user who runs the hypervisors in `blixard-vm@.service`. Any other than the default must be
                declared elsewhere and be able to open {file}`/dev/kvm`.
              '';
            };
            group = mkOption {
              type = types.str;
              default = "kvm";
              description = ''
                The group of the hypervisors in `blixard-vm@.service`. It must own {file}`/dev/kvm`, or no VM starts
                that needs it.
              '';
            };
            bridge = mkOption {
              type = types.nullOr (types.strMatching "[^/ ]{1,15}");
              default = null;
              example = "br0";
              description = ''
                The bridge that the VMs' taps are attached to; it must exist on this host. If null, they are attached
                to none, and a VM reaches the network only if the host routes or bridges its tap otherwise.
              '';
            };
          };
        };
      };
    };

    rendered.config = mkOption {
      type = format.type;
      internal = true;
      readOnly = true;
      description = "The settings as they are written: those that are null are left to the agent.";
      default = filterAttrsRecursive (_: value: value != null) settings;
    };
  };

  config = mkIf cfg.enable {
    assertions = [
      {
        assertion = lib.elem settings.node.name serverNames || settings.node.address != null;
        message = ''
          services.blixard on ${config.networking.hostName}: the node "${settings.node.name}" is none of cluster.servers (${toString serverNames}), so the others don't know where it is.
          Set services.blixard.settings.node.address, or add "${settings.node.name}@ADDRESS:PORT" to services.blixard.settings.cluster.servers on every host.
        '';
      }
      {
        assertion = settings.node.role != "worker" || head serverNames != settings.node.name;
        message = ''
          services.blixard on ${config.networking.hostName}: the node "${settings.node.name}" is first in cluster.servers, and so founds the cluster: it can't be a worker.
          Set services.blixard.settings.node.role to "auto", or put another host first in services.blixard.settings.cluster.servers on every host.
        '';
      }
      {
        assertion = unique serverNames == serverNames;
        message = ''
          services.blixard on ${config.networking.hostName}: cluster.servers names a node twice (${toString serverNames}).
          Give every server one entry in services.blixard.settings.cluster.servers.
        '';
      }
      {
        assertion = credentials != [ ];
        message = ''
          services.blixard on ${config.networking.hostName}: there is neither a cluster secret nor a join token nor a key of the node's own.
          Set services.blixard.clusterSecretFile, clusterTokenFile or nodeKeyFile to a file on the host, for example a path from agenix or sops-nix.
        '';
      }
      {
        assertion = length credentials <= 1;
        message = ''
          services.blixard on ${config.networking.hostName}: there is more than one of a cluster secret, a join token and a key of the node's own, and a node joins by one.
          Set one of services.blixard.clusterSecretFile, clusterTokenFile and nodeKeyFile, and leave the others out.
        '';
      }
      {
        assertion = (settings.node.key_file != null) == (settings.cluster.authority != null);
        message = ''
          services.blixard on ${config.networking.hostName}: a node with a key of its own, and no other, knows the cluster by settings.cluster.authority.
          Set services.blixard.nodeKeyFile, and services.blixard.settings.cluster.authority to what `blixard cluster authority` prints on a member, or neither.
        '';
      }
      {
        assertion = cfg.nodes ? ${settings.node.name} -> settings.node.key_file != null;
        message = ''
          services.blixard on ${config.networking.hostName}: services.blixard.nodes declares a key for "${settings.node.name}", which joins by that alone.
          Set services.blixard.nodeKeyFile to the key's file, or remove services.blixard.nodes.${settings.node.name}.
        '';
      }
      {
        assertion = settings.cluster.next_secret_file == null || settings.cluster.secret_file != null;
        message = ''
          services.blixard on ${config.networking.hostName}: there is a next cluster secret and no current one.
          Set services.blixard.clusterSecretFile, too, or, where that was rotated, to the next one alone.
        '';
      }
    ]
    ++ lib.mapAttrsToList (option: file: {
      assertion =
        file == null
        || !(builtins.isPath file || lib.hasPrefix "${builtins.storeDir}/" (toString file));
      message = ''
        services.blixard on ${config.networking.hostName}: ${option} (${toString file}) is in the Nix store, which everybody on the host can read, or would be copied there.
        Give the path of a file outside of it as a string, for example "/run/secrets/blixard".
      '';
    }) { inherit (cfg) clusterSecretFile nextClusterSecretFile clusterTokenFile nodeKeyFile; };

    environment.systemPackages = [ cfg.package ];
    environment.etc."blixard/config.toml".source = cfg.check "check-config" (
      format.generate "blixard-config.toml" cfg.rendered.config
    );

    environment.etc."blixard/manifest.json" = mkIf carriesManifest {
      source = cfg.manifestFile;
    };
    services.blixard.settings.manifest = mkIf carriesManifest {
      path = lib.mkDefault "/etc/blixard/manifest.json";
    };

    networking.firewall.allowedTCPPorts = mkIf cfg.openFirewall [
      (toInt (last (splitString ":" settings.node.listen)))
    ];

    # Who may talk to the agent is in the group blixard; who runs the hypervisors is the user blixard-vm, who
    # runs tasks blixard-task.
    users.groups.blixard = { };
    users.users.blixard-vm = mkIf (settings.vms.user == "blixard-vm") {
      isSystemUser = true;
      inherit (settings.vms) group;
      description = "Blixard's hypervisors";
    };

    users.users.blixard-task = mkIf (settings.tasks.user == "blixard-task") {
      isSystemUser = true;
      inherit (settings.tasks) group;
      description = "Blixard's tasks";
    };
    users.groups.blixard-task = mkIf (settings.tasks.group == "blixard-task") { };

    # The default is made by the units themselves.
    systemd.tmpfiles.settings."10-blixard" = mkIf (settings.node.data_dir != "/var/lib/blixard") (
      lib.genAttrs
        [
          settings.node.data_dir
          "${settings.node.data_dir}/tasks"
          "${settings.node.data_dir}/vms"
        ]
        (_: {
          d.mode = "0711";
        })
    );

    boot.kernelModules = [
      "tun"
      "tap"
      "vhost_net"
      "vhost_vsock"
    ];
  };
}
