# What alpha, beta and gamma have in common: a bridge for the VMs, and the cluster.
{
  boot.loader.systemd-boot.enable = true;
  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  fileSystems."/boot" = {
    device = "/dev/disk/by-label/boot";
    fsType = "vfat";
  };
  system.stateVersion = "26.05";

  networking = {
    useDHCP = false;
    bridges.br0.interfaces = [ "eno1" ];
    defaultGateway = "10.0.0.254";
    nameservers = [ "10.0.0.254" ];
  };

  services.openssh.enable = true;
  # Yours, as you update the hosts from elsewhere.
  users.users.root.openssh.authorizedKeys.keys = [ "ssh-ed25519 YOUR-KEY" ];

  services.blixard = {
    enable = true;
    openFirewall = true;
    # Put there by you, by agenix or by sops-nix: the same on every host, never in the Nix store.
    clusterSecretFile = "/var/lib/secrets/blixard";
    settings = {
      cluster.servers = [
        "alpha@10.0.0.1:7420"
        "beta@10.0.0.2:7420"
        "gamma@10.0.0.3:7420"
      ];
      vms.bridge = "br0";
    };
  };
}
