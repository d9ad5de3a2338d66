# The guest of the tests: answers HTTP on an address of its own with a line that holds the instance's name.
{
  # of the VM
  name,
  # how many there are to have an address
  replicas,
}:
{ lib, pkgs, ... }:
let
  # 192.168.1.N of replica 0; replica K has K more. The same as in ../prelude.py.
  first =
    {
      web = 100;
      db = 110;
      huge = 120;
    }
    .${name};
in
{
  system.stateVersion = lib.trivial.release;
  microvm = {
    hypervisor = "qemu";
    vcpu = 1;
    mem = 512;
    interfaces = [
      {
        type = "tap";
        id = "vm-${name}";
        mac = "02:00:00:00:01:${lib.toLower (lib.toHexString first)}";
      }
    ];
    # A guest in a guest: emulated whether there is KVM or not. The machine "microvm" hangs now and then without it.
    cpu = "max";
    qemu = {
      package = pkgs.qemu_test;
    }
    // lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
      machine = "q35";
      machineOpts = {
        accel = "tcg";
        acpi = "on";
        # The runner adds the keyboard controller that Ctrl-Alt-Del is sent to.
        i8042 = "off";
      };
    };
  };
  networking.firewall.allowedTCPPorts = [ 80 ];
  systemd.network.networks = lib.listToAttrs (
    lib.genList (k: {
      name = "10-${name}-${toString k}";
      value = {
        matchConfig = {
          Host = "${name}-${toString k}";
          Type = "ether";
        };
        address = [ "192.168.1.${toString (first + k)}/24" ];
      };
    }) replicas
  );
  # With the boot's id, to tell one run of the guest from the next.
  systemd.services.http = {
    description = "Answer with the host's name";
    wantedBy = [ "multi-user.target" ];
    script = ''
      mkdir -p /run/www
      echo "hello from $(cat /proc/sys/kernel/hostname), boot $(cat /proc/sys/kernel/random/boot_id)" > /run/www/index.html
      exec ${pkgs.busybox}/bin/httpd -f -p 80 -h /run/www
    '';
  };
}
