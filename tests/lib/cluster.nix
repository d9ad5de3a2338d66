# A claim's hosts: names and what is special about each → NixOS modules with `services.blixard` on one test network.
#
# The same description serves NixOS VMs, where a VM is a microvm.nix guest, and the rendered files, where its runners
# are stand-ins: `carry` says how.
{
  lib,
  # cluster's `vms` and `settings` → what of services.blixard makes a host carry them
  carry,
}:
{
  # <name> = module, which is merged into that host's.
  hosts,
  # <name> = { replicas ? 1; … }: what else is in it goes to services.blixard.vms.
  vms ? { },
  # services.blixard.cluster
  settings ? { },
  # Those of the hosts that are in cluster.servers.
  servers ? lib.attrNames hosts,
}:
let
  names = lib.attrNames hosts;
  # As the NixOS test driver numbers them: alphabetically, from 1.
  address = name: "192.168.1.${toString (1 + lib.lists.findFirstIndex (n: n == name) null names)}";
in
lib.mapAttrs (name: host: {
  imports = [ host ];
  networking.hostName = name;
  # Readable by all, and in the store: only a test may do that.
  environment.etc."blixard/cluster-secret".text = "a secret that every host of this test knows\n";
  services.blixard = carry { inherit vms settings; } // {
    enable = true;
    clusterSecretFile = lib.mkDefault "/etc/blixard/cluster-secret";
    settings = {
      node.listen = "0.0.0.0:7420";
      node.address = lib.mkIf (!lib.elem name servers) "${address name}:7420";
      cluster.servers = lib.mkDefault (map (server: "${server}@${address server}:7420") servers);
      resources = {
        cpus = lib.mkDefault 2;
        memory_mib = lib.mkDefault 2048;
        disk_mib = lib.mkDefault 4096;
      };
      # Hosts of a test are virtual, and are paused only by tests that say so; there is no device to reset them.
      fence.allow_virtual_hosts = true;
      fence.watchdog = "none";
      vms.bridge = "br0";
    };
  };
}) hosts
