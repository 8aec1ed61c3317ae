"""What steers a model beside text and class, made from folders or on the fly: maps, boxes, small images, masks."""
