# What the module must refuse, and the words it must say: fails with the cases that it let through or explained otherwise.
{
  lib,
  pkgs,
  runCommand,
  # microvm.nix's source
  microvm,
}:
let
  runner = name: "/nix/store/${lib.concatStrings (lib.genList (_: "0") 32)}-${name}";
  ready = {
    runners = [ (runner "a") ];
    vcpus = 1;
    memoryMiB = 96;
  };
  authority = lib.concatStrings (lib.genList (_: "0") 32 ++ [ ":" ] ++ lib.genList (_: "0") 64);
  tap = id: mac: {
    microvm.interfaces = [
      {
        type = "tap";
        inherit id mac;
      }
    ];
  };
  guest = vm: { vms.web.config.microvm = vm; };

  # A host that joins by a key of its own.
  declared = {
    clusterSecretFile = lib.mkForce null;
    nodeKeyFile = "/run/secrets/blixard-node";
    nodes.alpha.publicKey = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    settings.cluster.authority = authority;
  };

  # says → what of services.blixard must be refused so
  cases = {
    "is none of cluster.servers (beta)" = {
      settings.cluster.servers = lib.mkForce [ "beta@10.0.0.2:7420" ];
    };
    "is first in cluster.servers, and so founds the cluster" = {
      settings.node.role = "worker";
    };
    "names a node twice" = {
      settings.cluster.servers = [ "alpha@10.0.0.2:7420" ];
    };
    "there is neither a cluster secret nor a join token nor a key" = {
      clusterSecretFile = lib.mkForce null;
    };
    "there is more than one of a cluster secret, a join token" = {
      clusterTokenFile = "/run/secrets/blixard-token";
    };
    "and a key of the node's own, and a node joins by one" = declared // {
      clusterSecretFile = "/run/secrets/blixard";
    };
    "knows the cluster by settings.cluster.authority" = removeAttrs declared [ "settings" ];
    "a node with a key of its own, and no other" = {
      settings.cluster.authority = authority;
    };
    "declares a key for \"alpha\", which joins by that alone" = {
      inherit (declared) nodes;
    };
    "there is a next cluster secret and no current one" = {
      clusterSecretFile = lib.mkForce null;
      nextClusterSecretFile = "/run/secrets/blixard-next";
      clusterTokenFile = "/run/secrets/blixard-token";
    };
    "clusterSecretFile (${runner "secret"}) is in the Nix store" = {
      clusterSecretFile = lib.mkForce (runner "secret");
    };
    "clusterTokenFile (${runner "token"}) is in the Nix store" = {
      clusterSecretFile = lib.mkForce null;
      clusterTokenFile = runner "token";
    };
    "nodeKeyFile (${runner "key"}) is in the Nix store" = declared // {
      nodeKeyFile = runner "key";
    };
    "nextClusterSecretFile (${runner "next"}) is in the Nix store" = {
      nextClusterSecretFile = runner "next";
    };
    "\"Web_1\" isn't a DNS label" = {
      vms.Web_1 = ready;
    };
    "isn't a DNS label of at most 57" = {
      vms.${lib.concatStrings (lib.genList (_: "a") 58)} = ready;
    };
    "vms.web has neither config nor runners" = {
      vms.web = { };
    };
    "vms.web has both config and runners" = {
      vms.web = ready // {
        config = { };
      };
    };
    "vms.web has 1 runners for 3 replicas" = {
      vms.web = ready // {
        replicas = 3;
      };
    };
    "vms.web has 0 runners" = {
      vms.web = ready // {
        runners = [ ];
      };
    };
    "State services.blixard.vms.web.vcpus" = {
      vms.web.runners = ready.runners;
    };
    "db-0 and web-0 have the same runner" = {
      vms.web = ready;
      vms.db = ready;
    };
    "Set microvm.vcpu" = {
      vms.web = {
        config = { };
        vcpus = 2;
      };
    };
    "memoryMiB (96) is less than the guest has (512)" = {
      vms.web = {
        config.microvm.mem = 512;
        memoryMiB = 96;
      };
    };
    "the hypervisor \"vfkit\" doesn't run on Linux" = guest { hypervisor = "vfkit"; };
    "the interface \"eth\" is of type \"bridge\"" = guest {
      interfaces = [
        {
          type = "bridge";
          id = "eth";
          mac = "02:00:00:00:00:10";
          bridge = "br0";
        }
      ];
    };
    "\"02:00:00:00:00:1g\" isn't a MAC address" = {
      vms.web.config = tap "vm-web" "02:00:00:00:00:1g";
    };
    "the share data ties the VM to one host's files" = guest {
      shares = [
        {
          tag = "data";
          source = "/srv";
          mountPoint = "/srv";
        }
      ];
    };
    "the volume \"/var/x.img\" isn't below" = guest {
      volumes = [
        {
          image = "/var/x.img";
          mountPoint = "/x";
          size = 1;
        }
      ];
    };
    "the device \"0000:01:00.0\" is passed through" = guest {
      devices = [
        {
          bus = "pci";
          path = "0000:01:00.0";
        }
      ];
    };
    "microvm.user is \"joe\"" = guest { user = "joe"; };
    "db-0 and web-1 have the same MAC address, 02:00:00:00:00:11" = {
      vms.web = {
        config = tap "vm-web" "02:00:00:00:00:10";
        replicas = 2;
      };
      vms.db.config = tap "vm-db" "02:00:00:00:00:11";
    };
    "db-0 and web-0 have the same tap, vm-0" = {
      vms.web.config = tap "vm" "02:00:00:00:00:10";
      vms.db.config = tap "vm" "02:00:00:00:00:11";
    };
    "db-0 and web-1 have the same vsock id, 11" = {
      vms.web = {
        config.microvm.vsock.cid = 10;
        replicas = 2;
      };
      vms.db.config.microvm.vsock.cid = 11;
    };
  };

  # What no option takes; which one is said by the module system, in words that can't be caught here. What fits no other, as
  # times of a lease or more replicas at least than there are, `blixard check-manifest` refuses when the system is built.
  unfit = {
    "vms.web.failover" = {
      vms.web = ready // {
        failover = "sometimes";
      };
    };
    "vms.web.minAvailable" = {
      vms.web = ready // {
        minAvailable = -1;
      };
    };
    "vms.web.priority" = {
      vms.web = ready // {
        priority = 1001;
      };
    };
    "cluster.lease" = {
      vms.web = ready;
      cluster.lease = "slow";
    };
    "cluster.lease without its other times" = {
      vms.web = ready;
      cluster.lease.leaseMs = 5000;
    };
    "settings.fence.watchdog" = {
      settings.fence.watchdog = "watchdog0";
    };
    "settings.fence.allow_virtual_hosts" = {
      settings.fence.allow_virtual_hosts = "yes";
    };
  };

  evaluated =
    blixard:
    import ./alone.nix { inherit lib pkgs; } {
      networking.hostName = "alpha";
      services.blixard = lib.mkMerge [
        {
          enable = true;
          inherit microvm;
          clusterSecretFile = "/run/secrets/blixard";
          settings.cluster.servers = [ "alpha@10.0.0.1:7420" ];
        }
        blixard
      ];
    };
  refused =
    blixard:
    lib.concatMapStrings (assertion: assertion.message) (
      lib.filter (assertion: !assertion.assertion) (evaluated blixard).assertions
    );
  fits =
    blixard:
    let
      inherit ((evaluated blixard).services.blixard) rendered;
    in
    (builtins.tryEval (builtins.deepSeq [ rendered.manifest rendered.config ] true)).success;
  wrong = lib.filterAttrs (says: blixard: !lib.hasInfix says (refused blixard)) cases;
  # What is right.
  needless = lib.concatMapStrings refused [
    { }
    declared
  ];
  taken = lib.attrNames (lib.filterAttrs (_: fits) unfit);
in
if wrong == { } && needless == "" && taken == [ ] && fits { vms.web = ready; } then
  runCommand "refusals" { } "touch $out"
else
  throw (
    lib.optionalString (taken != [ ]) "Taken as it is: ${toString taken}\n"
    + lib.optionalString (needless != "") "What is right is refused: ${needless}\n"
    + lib.optionalString (!fits { vms.web = ready; }) "What is right is not taken\n"
    + lib.concatStrings (
      lib.mapAttrsToList (
        says: blixard: "Not refused with '${says}' but with '${refused blixard}'\n"
      ) wrong
    )
  )
