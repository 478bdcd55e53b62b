"""hawkBit's Direct Device Integration API: the fleet's rollouts for devices with SWUpdate or rauc-hawkbit-updater."""
