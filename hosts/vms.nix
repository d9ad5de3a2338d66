# The VMs that the cluster runs, whichever of its hosts they are on.
{
  services.blixard.vms.web = {
    replicas = 2;
    config = {
      system.stateVersion = "26.05";
      microvm = {
        hypervisor = "cloud-hypervisor";
        mem = 512;
        # Lets the VM say when it has booted. The second replica has 101.
        vsock.cid = 100;
        interfaces = [
          {
            type = "tap";
            id = "vm-web";
            # The second replica has …:11.
            mac = "02:00:00:00:00:10";
          }
        ];
      };
      systemd.network.networks = {
        "10-web-0" = {
          matchConfig.Host = "web-0";
          matchConfig.Type = "ether";
          address = [ "10.0.0.100/24" ];
        };
        "10-web-1" = {
          matchConfig.Host = "web-1";
          matchConfig.Type = "ether";
          address = [ "10.0.0.101/24" ];
        };
      };
      networking.firewall.allowedTCPPorts = [ 80 ];
      services.caddy = {
        enable = true;
        virtualHosts.":80".extraConfig = ''respond "hello from {system.hostname}"'';
      };
    };
  };
}
